"""Build the object that the ``_target_`` of a config node names. A config runs code only through this module."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from alignlab.config.signatures import VARIADIC, parameters, with_settings
from alignlab.config.target import CONTROL, checked_target
from alignlab.errors import InputError
from alignlab.system.credentials import revealed


def build(key: str, node: Mapping[str, Any] | None, **extra: Any) -> Any:
    """Build the object that a node describes, and first those of nested nodes.

    Args:
        key: Dotted key of the node in the config, which determines the kind of object.
        node: ``_target_`` and its keyword arguments, plain and resolved, or None. References to secrets in strings are
            replaced here.
        **extra: Further keyword arguments that a config cannot have (a model, a tokenizer); they override the node's.

    Returns:
        The object; with ``_partial_: true`` a ``functools.partial``; None for None.

    Raises:
        InputError: The object is not of the kind of the key, the target cannot be imported, an argument is missing, or
            the target refuses a value.
    """
    return None if node is None else _build(key, node, extra, None, "")


def _build(key: str, node: Mapping[str, Any], extra: Mapping[str, Any], parent: Any, argument: str) -> Any:
    target, name = checked_target(key, node, parent, argument), node["_target_"]
    given = {argument: value for argument, value in node.items() if argument not in CONTROL}
    arguments = {name: _build_value(f"{key}.{name}", value, target, name) for name, value in given.items()}
    arguments |= extra
    if node.get("_partial_"):
        return functools.partial(target, **arguments)
    _refuse_missing(name, target, arguments)
    try:
        return target(**with_settings(target, arguments))
    except (ValueError, ImportError, MisconfigurationException) as error:
        raise InputError(f"{name} with {_shown(given)}", str(error), "Change what it names") from error


def _build_value(key: str, value: Any, parent: Any, argument: str) -> Any:
    """A value in which nodes are replaced by their objects."""
    if isinstance(value, Mapping) and "_target_" in value:
        return _build(key, value, {}, parent, argument)
    if isinstance(value, Mapping):
        return {name: _build_value(f"{key}.{name}", item, parent, argument) for name, item in value.items()}
    if isinstance(value, list):
        return [_build_value(f"{key}.{index}", item, parent, argument) for index, item in enumerate(value)]
    return revealed(key, value) if isinstance(value, str) else value


def build_all(key: str, nodes: Mapping[str, Mapping[str, Any] | None], **extra: Any) -> dict[str, Any]:
    """Build the objects of a group with several nodes (``logger``, ``callbacks``).

    Args:
        key: Dotted key of the group.
        nodes: Nodes by name; None for no object.
        **extra: Further keyword arguments, for the targets that accept them.
    """
    built = {}
    for name, node in nodes.items():
        if node is not None:
            target = checked_target(f"{key}.{name}", node)
            accepted = {argument: value for argument, value in extra.items() if argument in parameters(target)}
            built[name] = build(f"{key}.{name}", node, **accepted)
    return built


def _refuse_missing(name: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    known = parameters(target).values()
    required = [p.name for p in known if p.default is p.empty and p.kind not in VARIADIC]
    missing = [parameter for parameter in required if parameter not in arguments]
    if missing:
        settings = ", ".join(f"{parameter}: …" for parameter in missing)
        raise InputError(f"_target_={name}", f"it also needs {', '.join(missing)}", f"Add {settings} beside _target_")


def _shown(node: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in node.items() if not isinstance(value, Mapping)}
    return ", ".join(f"{key}={value}" for key, value in plain.items()) or "its defaults"
