"""Checks of external callables and of addresses, and HTTP requests that send the password of a URL in a header."""

import base64
import inspect
import sys
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from alignlab.errors import InputError


def refuse_module(path: str, where: str) -> None:
    """Refuse a module of the standard library before it is imported.

    Args:
        path: The path as typed.
        where: The module or file of the path.

    Raises:
        InputError: The module is part of the standard library.
    """
    if not where.endswith(".py") and where.partition(".")[0] in sys.stdlib_module_names:
        raise _no_reward(path, "it is part of the standard library")


def refuse_other_callables(path: str, where: str, function: Callable[..., Any]) -> None:
    """Refuse callables of a package that are not rewards. A file is the user's own program and is not checked.

    Args:
        path: The path as typed.
        where: The module or file of the path.
        function: The callable at the path.

    Raises:
        InputError: It comes from the standard library, or takes no argument named ``completions``.
    """
    if where.endswith(".py"):
        return
    if str(getattr(function, "__module__", "")).partition(".")[0] in sys.stdlib_module_names:
        raise _no_reward(path, "it comes from the standard library")
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):  # callables written in C may have no signature
        names = {}
    if "completions" not in names:
        raise _no_reward(path, "it takes no argument named completions")


def url_fault(url: str) -> str:
    """Why a URL is not valid; empty if it is."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"it is not an address: {error}"
    if parts.scheme not in ("http", "https"):
        return "an address begins with http:// or https://"
    if not host or any(character.isspace() or not character.isprintable() for character in url):
        return "it names no host" if not host else "an address has no blanks"
    return ""


def post(url: str, body: bytes) -> urllib.request.Request:
    """Make a POST request with a JSON body. User and password of the URL are sent in a header.

    Args:
        url: URL, which may contain ``user:password@``.
        body: JSON text.
    """
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json"}
    user, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    return urllib.request.Request(urlunsplit(parts._replace(netloc=host)), body, headers)


def _no_reward(path: str, why: str) -> InputError:
    return InputError(f"path={path}", why, "Give package.module:function with an argument completions, or a file.py")
