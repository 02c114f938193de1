"""Signatures of classes and functions: their arguments and annotations."""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from alignlab.types.settings import Settings

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_chain(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that receive keyword arguments: a function itself; for a class, its constructors along the MRO."""
    if not inspect.isclass(target):
        return [target]
    functions = [kind.__init__ for kind in target.__mro__[:-1] if "__init__" in vars(kind)] or [target.__init__]
    closed = next((index for index, function in enumerate(functions) if not is_open(function)), len(functions))
    return functions[: closed + 1]


def is_open(function: Callable[..., Any]) -> bool:
    """Whether a function accepts any keyword argument (``**kwargs``)."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters(function).values())


@functools.cache
def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters by name, without ``self``. A ``Settings`` argument is replaced by the fields of its class."""
    try:
        found = {key: value for key, value in inspect.signature(function).parameters.items() if key != "self"}
    except ValueError:  # some C functions have no signature
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}
    grouped = settings_arguments(function)
    fields = {key: value for kind in grouped.values() for key, value in inspect.signature(kind).parameters.items()}
    return {key: value for key, value in found.items() if key not in grouped} | fields


@functools.cache
def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of the parameters and of the result; none where they cannot be evaluated."""
    grouped = settings_arguments(function)
    fields = {key: hint for kind in grouped.values() for key, hint in _annotations(kind).items()}
    return {key: hint for key, hint in _annotations(function).items() if key not in grouped} | fields


@functools.cache
def settings_arguments(target: Callable[..., Any]) -> dict[str, type[Settings]]:
    """Arguments whose type is a ``Settings`` class, by name."""
    function = target.__init__ if inspect.isclass(target) else target
    annotations = {key: hint for key, hint in _annotations(function).items() if key != "return"}
    return {key: hint for key, hint in annotations.items() if inspect.isclass(hint) and issubclass(hint, Settings)}


def with_settings(target: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to call a target with, in which ``Settings`` objects are made of their fields.

    Args:
        target: Class or function.
        arguments: Arguments by the names of ``parameters``.
    """
    grouped = {}
    for key, kind in settings_arguments(target).items():
        names = inspect.signature(kind).parameters
        grouped[key] = kind(**{name: value for name, value in arguments.items() if name in names})
        arguments = {name: value for name, value in arguments.items() if name not in names}
    return {**arguments, **grouped}


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}
