"""What a class or function can be called with, as its signature says."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def chain(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Where keyword arguments end up: the function; of a class, its constructor and those it passes them on to."""
    if not inspect.isclass(target):
        return [target]
    functions = [kind.__init__ for kind in target.__mro__[:-1] if "__init__" in vars(kind)] or [target.__init__]
    closed = next((index for index, function in enumerate(functions) if not is_open(function)), len(functions))
    return functions[: closed + 1]


def is_open(function: Callable[..., Any]) -> bool:
    """Whether it takes keyword arguments of any name."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters(function).values())


@functools.cache
def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters by name, without ``self``."""
    try:
        return {key: value for key, value in inspect.signature(function).parameters.items() if key != "self"}
    except ValueError:  # some functions written in C tell nothing
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


@functools.cache
def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of the arguments and of the result; none where they cannot be evaluated."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
