"""Which callables of others may be rewards, and how a scorer behind HTTP is asked with the password of its address."""

import base64
import inspect
import sys
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from alignlab.errors import InputError


def refuse_module(path: str, where: str) -> None:
    """Refuse the standard library, before anything of it is imported.

    Args:
        path: As typed.
        where: The module, or a file, in it.

    Raises:
        InputError: It is part of the standard library.
    """
    if not where.endswith(".py") and where.partition(".")[0] in sys.stdlib_module_names:
        raise _no_reward(path, "it is part of the standard library")


def refuse_other_callables(path: str, where: str, function: Callable[..., Any]) -> None:
    """Refuse what a package holds besides rewards; a file is its owner's own program.

    Args:
        path: As typed.
        where: The module, or a file, in it.
        function: What was found there.

    Raises:
        InputError: It comes from the standard library, or takes no argument named ``completions``.
    """
    if where.endswith(".py"):
        return
    if str(getattr(function, "__module__", "")).partition(".")[0] in sys.stdlib_module_names:
        raise _no_reward(path, "it comes from the standard library")
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):  # what is written in C may tell nothing
        names = {}
    if "completions" not in names:
        raise _no_reward(path, "it takes no argument named completions")


def post(url: str, body: bytes) -> urllib.request.Request:
    """A request of JSON; user and password of the address become a header, which is what servers read.

    Args:
        url: May hold ``user:password@``.
        body: JSON.
    """
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json"}
    user, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    return urllib.request.Request(urlunsplit(parts._replace(netloc=host)), body, headers)


def _no_reward(path: str, why: str) -> InputError:
    return InputError(f"path={path}", why, "Give package.module:function with an argument completions, or a file.py")
