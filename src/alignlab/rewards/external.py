"""Rewards that others wrote: any Python callable, and a scorer behind HTTP."""

import asyncio
import importlib
import importlib.util
import inspect
import json
import time
import urllib.request
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from alignlab.errors import InputError
from alignlab.rewards.external_rules import post, refuse_module, refuse_other_callables
from alignlab.rewards.own_process import Apart

MAX_ANSWER_BYTES = 2**26
"""Of a server's answer: 64 MiB, some hundred bytes for each of half a million completions."""

CHUNK_BYTES = 2**16


class PythonReward(Apart):
    """A callable by path, sync or async.

    It is called with those of ``completions``, ``prompts`` and the columns that its signature names, or with all of
    them where it takes ``**kwargs``, and returns one number or None per completion.

    Args:
        path: ``package.module:function`` or ``file.py:function``.
    """

    def __init__(self, *, path: str):
        self.path = path

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """What the callable returns."""
        given = {"completions": completions, "prompts": prompts, **columns}
        names = self.names
        result = self.function(**{name: value for name, value in given.items() if names is None or name in names})
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    def prepare(self) -> None:
        """Find the callable.

        Raises:
            InputError: There is none, or its module cannot be imported.
        """
        _ = self.names

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The callable; found where it is first needed, so that its module is imported there only."""
        return _load(self.path)

    @cached_property
    def names(self) -> set[str] | None:
        """What it can be told by name; None for everything."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some callables written in C tell nothing
            return None
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        return None if takes_all else {parameter.name for parameter in parameters}


async def _awaited(result: Any) -> Any:
    return await result


class HTTPReward:
    """A scorer behind HTTP: gets ``{"completions", "prompts", columns…}`` as JSON, answers ``{"rewards": […]}``.

    Args:
        url: Where to POST.
        timeout_seconds: Of one request, to the last byte of its answer.

    Raises:
        InputError: The address cannot be one.
    """

    def __init__(self, *, url: str, timeout_seconds: Annotated[float, Field(gt=0)]):
        self.url, self.timeout_seconds = url, timeout_seconds
        fault = _fault(url)
        if fault:
            raise InputError(
                f"method.reward.http.url={url}", fault, "Type method.reward.http.url=http://HOST:PORT/PATH"
            )

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """The rewards of the answer."""
        deadline = time.monotonic() + self.timeout_seconds
        body = json.dumps({"completions": completions, "prompts": prompts, **columns}).encode()
        with urllib.request.urlopen(post(self.url, body), timeout=self.timeout_seconds) as answer:
            return json.loads(_read(answer, deadline))["rewards"]


def _read(answer: Any, deadline: float) -> bytes:
    """The whole of an answer, however slowly it comes, within limits of time and size."""
    body = bytearray()
    while chunk := answer.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("its answer has not come to an end in time")
    return bytes(body)


def _fault(url: str) -> str:
    """Why an address cannot be one; nothing where it can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"it is no address: {error}"
    if parts.scheme not in ("http", "https"):
        return "an address begins with http:// or https://"
    if not host or any(character.isspace() or not character.isprintable() for character in url):
        return "it names no host" if not host else "an address has no blanks"
    return ""


def _load(path: str) -> Callable[..., Any]:
    where, _, name = path.partition(":")
    asked, instead = f"path={path}", "Give package.module:function, or file.py:function"
    refuse_module(path, where)
    try:
        function = getattr(_module(where), name)
    except Exception as error:  # the code of its module may raise anything
        raise InputError(asked, f"there is no such callable: {type(error).__name__}: {error}", instead) from error
    if not callable(function):
        raise InputError(asked, f"{name} is a {type(function).__name__}, which cannot be called", instead)
    refuse_other_callables(path, where, function)
    return function


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
