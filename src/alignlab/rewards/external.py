"""External rewards: a Python callable by its path, and an HTTP server."""

import asyncio
import contextlib
import copy
import importlib
import importlib.util
import inspect
import json
import time
import urllib.request
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from alignlab.errors import InputError
from alignlab.rewards.external_rules import post, refuse_module, refuse_other_callables, url_fault
from alignlab.rewards.own_process import OwnProcessReward

MAX_RESPONSE_BYTES = 2**26
"""Maximum size of a server's response: 64 MiB, over a hundred bytes for each of half a million completions."""

CHUNK_BYTES = 2**16

TAKEN_FOR_MESSAGES = (TypeError, AttributeError, KeyError, IndexError)
"""Errors of a function that reads a text as a list of messages. Others, as those of a server, say nothing of it."""


class PythonReward(OwnProcessReward):
    """A synchronous or asynchronous callable, given by its path.

    It is called with those of ``completions``, ``prompts`` and the columns that are in its signature, or with all of
    them if it takes ``**kwargs``, and returns one number or None per completion.

    Args:
        path: ``package.module:function`` or ``file.py:function``.
        style: Form of a completion: ``text``, or ``messages``, a list of one message of the assistant, as TRL gives to
            rewards of dialogues. ``auto`` calls it with texts first, and if it takes them for something else, with
            messages from then on.
    """

    def __init__(self, *, path: str, style: Literal["auto", "text", "messages"] = "auto"):
        self.path, self.style = path, style

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """Call the callable and return its result."""
        if self.style != "auto":
            return self._call(self.style, completions, prompts, columns)
        arguments = copy.deepcopy((completions, prompts, columns))
        try:
            result, self.style = self._call("text", *arguments), "text"
        except TAKEN_FOR_MESSAGES:
            with contextlib.suppress(Exception):  # where neither form suits it, the error of the first is shown
                result, self.style = self._call("messages", completions, prompts, columns), "messages"
            if self.style == "auto":
                raise
            print(f"{self.path} takes completions as messages: method.reward.NAME.style=messages says so", flush=True)
        return result

    def _call(self, style: str, completions: list[str], prompts: list, columns: dict[str, list]) -> Any:
        if style == "messages":
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        given = {**columns, "completions": completions, "prompts": prompts}
        names = self.names
        result = self.function(**{name: value for name, value in given.items() if names is None or name in names})
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    @property
    def needs(self) -> set[str]:
        """Names of the columns that it cannot be called without."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:
            return set()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        needed = {one.name for one in parameters if one.kind in kinds and one.default is inspect.Parameter.empty}
        return needed - {"completions", "prompts"}

    def prepare(self) -> None:
        """Import the callable.

        Raises:
            InputError: There is no such callable, or its module cannot be imported.
        """
        _ = self.names

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The callable. It is imported on first use, and so only in the process that calls it."""
        return _load(self.path)

    @cached_property
    def names(self) -> set[str] | None:
        """Names of the arguments that it takes; None if it takes any."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some callables written in C have no signature
            return None
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        return None if takes_all else {parameter.name for parameter in parameters}


async def _awaited(result: Any) -> Any:
    return await result


class HTTPReward:
    """An HTTP server that receives ``{"completions", "prompts", columns…}`` as JSON and returns ``{"rewards": […]}``.

    Args:
        url: URL of the POST requests.
        timeout_seconds: Timeout of one request, up to the last byte of its response.

    Raises:
        InputError: The URL is not valid.
    """

    def __init__(self, *, url: str, timeout_seconds: Annotated[float, Field(gt=0)]):
        self.url, self.timeout_seconds = url, timeout_seconds
        fault = url_fault(url)
        if fault:
            raise InputError(
                f"method.reward.http.url={url}", fault, "Type method.reward.http.url=http://HOST:PORT/PATH"
            )

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """Send one request and return the rewards of the response."""
        deadline = time.monotonic() + self.timeout_seconds
        body = json.dumps({"completions": completions, "prompts": prompts, **columns}).encode()
        with urllib.request.urlopen(post(self.url, body), timeout=self.timeout_seconds) as response:
            return json.loads(_read(response, deadline))["rewards"]


def _read(response: Any, deadline: float) -> bytes:
    """Read a whole response, within limits of time and size."""
    body = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_RESPONSE_BYTES:
            raise ValueError(f"its response is longer than {MAX_RESPONSE_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("its response was not complete in time")
    return bytes(body)


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
