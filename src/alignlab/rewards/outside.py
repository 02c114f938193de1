"""Rewards that others wrote: any Python callable, and a scorer behind HTTP."""

import asyncio
import importlib
import importlib.util
import inspect
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.rewards.outsiders import post, refuse_module, refuse_other_callables


class PythonReward:
    """A callable by path, sync or async.

    It is called with those of ``completions``, ``prompts`` and the columns that its signature names, or with all of
    them where it takes ``**kwargs``, and returns one number or None per completion.

    Args:
        path: ``package.module:function`` or ``file.py:function``.

    Raises:
        InputError: There is no such callable.
    """

    def __init__(self, *, path: str):
        self.function = _load(path)
        parameters = inspect.signature(self.function).parameters.values()
        self.takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.names = {parameter.name for parameter in parameters}

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """What the callable returns."""
        given = {"completions": completions, "prompts": prompts, **columns}
        given = given if self.takes_all else {name: value for name, value in given.items() if name in self.names}
        result = self.function(**given)
        return asyncio.run(result) if inspect.isawaitable(result) else result


class HTTPReward:
    """A scorer behind HTTP: gets ``{"completions", "prompts", columns…}`` as JSON, answers ``{"rewards": […]}``.

    Args:
        url: Where to POST.
        timeout_seconds: Of one request.
    """

    def __init__(self, *, url: str, timeout_seconds: float):
        self.url, self.timeout_seconds = url, timeout_seconds

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """The rewards of the answer."""
        body = json.dumps({"completions": completions, "prompts": prompts, **columns}).encode()
        with urllib.request.urlopen(post(self.url, body), timeout=self.timeout_seconds) as answer:
            return json.load(answer)["rewards"]


def _load(path: str) -> Callable[..., Any]:
    where, _, name = path.partition(":")
    refuse_module(path, where)
    try:
        function = getattr(_module(where), name)
    except (ImportError, AttributeError, FileNotFoundError, SyntaxError) as error:
        instead = "Give package.module:function, or file.py:function"
        raise InputError(f"path={path}", f"there is no such callable: {error}", instead) from error
    refuse_other_callables(path, where, function)
    return function


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(Path(where).stem, where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
