"""From a config node to the object that its ``_target_`` names: the only door through which configuration runs code.

A config that somebody sent is not a program. Each place takes a kind of object (``kinds``), checked before anything is
called, and nothing of the standard library. A class of one's own installed package needs no permission: a callback is
a callback wherever it comes from. The module that a target names is imported, which runs that module.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from alignlab.config.kinds import LIBRARY, home, kinds_at
from alignlab.config.signatures import VARIADIC, parameters, with_settings
from alignlab.errors import InputError, nearest
from alignlab.system.credentials import revealed

CONTROL = {"_target_", "_partial_"}
"""Keys of a node that are no arguments."""


def build(place: str, node: Mapping[str, Any] | None, **extra: Any) -> Any:
    """Make the object that a node describes, its nested nodes first.

    Args:
        place: Dotted key of the node in the config, which decides what it may be.
        node: ``_target_`` and its keyword arguments, plain and resolved, or None. Strings are taken as they stand, but
            for references to secrets, which are filled in here.
        **extra: Further keyword arguments that no config can hold (a model, a tokenizer); they win over the node's.

    Returns:
        The object; with ``_partial_: true`` a ``functools.partial``; None for None.

    Raises:
        InputError: The place takes no such object, the target cannot be imported, an argument is missing, or the target
            refuses a value.
    """
    return None if node is None else _make(place, node, extra, None, "")


def _make(place: str, node: Mapping[str, Any], extra: Mapping[str, Any], around: Any, argument: str) -> Any:
    target, name = fitting(place, node, around, argument), node["_target_"]
    given = {key: value for key, value in node.items() if key not in CONTROL}
    arguments = {key: _made(f"{place}.{key}", value, target, key) for key, value in given.items()} | dict(extra)
    if node.get("_partial_"):
        return functools.partial(target, **arguments)
    _refuse_missing(name, target, arguments)
    try:
        return target(**with_settings(target, arguments))
    except (ValueError, ImportError, MisconfigurationException) as error:
        raise InputError(f"{name} with {_shown(given)}", str(error), "Change what it names") from error


def _made(place: str, value: Any, around: Any, argument: str) -> Any:
    """A value with the objects made that nodes within it describe."""
    if isinstance(value, Mapping) and "_target_" in value:
        return _make(place, value, {}, around, argument)
    if isinstance(value, Mapping):
        return {key: _made(f"{place}.{key}", part, around, argument) for key, part in value.items()}
    if isinstance(value, list):
        return [_made(f"{place}.{index}", part, around, argument) for index, part in enumerate(value)]
    return revealed(place, value) if isinstance(value, str) else value


def build_all(place: str, nodes: Mapping[str, Mapping[str, Any] | None], **extra: Any) -> dict[str, Any]:
    """Make the objects of a group whose nodes stand side by side (``logger``, ``callbacks``).

    Args:
        place: Dotted key of the group.
        nodes: Nodes by name; None leaves one out.
        **extra: What no config can hold, for those targets that have an argument by the name.
    """
    made = {}
    for name, node in nodes.items():
        if node is not None:
            target = fitting(f"{place}.{name}", node)
            taken = {key: value for key, value in extra.items() if key in parameters(target)}
            made[name] = build(f"{place}.{name}", node, **taken)
    return made


def fitting(place: str, node: Mapping[str, Any], around: Any = None, argument: str = "") -> Callable[..., Any]:
    """The class or function of a node, if its place takes such a one; nothing is called.

    Args:
        place: Dotted key of the node.
        node: With ``_target_``.
        around: Class or function of the node that this one lies in, if any.
        argument: Of that, the argument that this node lies in.

    Raises:
        InputError: It is not of the kind of its place, waits where it must not or does not where it must, cannot be
            found, or comes from the standard library.
    """
    asked, path = f"{place}._target_={node['_target_']}", node["_target_"]
    try:
        target = locate(path)
    except InputError as error:
        raise InputError(f"{place}.{error.asked}", error.why, error.instead) from error
    kinds = kinds_at(place, around, argument)
    if not kinds:
        raise InputError(asked, "nothing there takes an object", f"Leave out {place}._target_")
    kind = next((kind for kind in kinds if kind.fits(target)), None)
    if kind is None:
        wanted = ", or ".join(dict.fromkeys(kind.words for kind in kinds))
        raise InputError(asked, f"it should be {wanted}", "Name one, of any installed package")
    for key in ("_args_", "_convert_", "_recursive_"):
        if key in node:
            raise InputError(f"{place}.{key}={node[key]}", "arguments are given by name", f"Leave out {place}.{key}")
    if node.get("_partial_", False) is not kind.waits(target):
        why = "training calls it" if kind.waits(target) else "it is made when the run starts"
        instead = f"Type {place}._partial_={'true' if kind.waits(target) else 'false'}"
        raise InputError(f"{asked} with _partial_={node.get('_partial_', False)}", why, instead)
    return target


@functools.cache
def _locate(path: str) -> Callable[..., Any]:
    parts = path.split(".")
    if parts[0] in LIBRARY or any(part.startswith("__") for part in parts):
        raise _refused(path)
    found = _first_module(path, parts[0])
    for index, part in enumerate(parts[1:], start=2):
        if not inspect.ismodule(found) and not inspect.isclass(found):
            raise InputError(f"_target_={path}", f"'{parts[index - 2]}' is no module", "Name a class or a function")
        found = _member(path, found, part, ".".join(parts[:index]))
        if home(found) in LIBRARY:
            raise _refused(path)
    if not callable(found):
        raise InputError(f"_target_={path}", "it can be imported but not called", "Name a class or a function")
    return found


def locate(path: Any) -> Callable[..., Any]:
    """The class or function at a dotted path.

    Raises:
        InputError: It does not exist, cannot be imported, cannot be called, or is part of the standard library.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        raise InputError(f"_target_={path}", "it is no dotted path", "Name a class or function, as package.module.Name")
    return _locate(path)


def _refused(path: str) -> InputError:
    why = "the standard library, installers and readers of pickles are no targets, whoever wrote the config"
    return InputError(f"_target_={path}", why, "Name a class or function of a package that is meant to be configured")


def _first_module(path: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        instead = f"Install '{name}', or put its folder on PYTHONPATH"
        raise InputError(f"_target_={path}", f"'{name}' cannot be imported ({error})", instead) from error
    except Exception as error:  # a module of others may fail in any way
        raise _broken(path, name, error) from error


def _member(path: str, parent: Any, name: str, dotted: str) -> Any:
    if hasattr(parent, name):
        return getattr(parent, name)
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is not None and not dotted.startswith(error.name):
            instead = f"Install '{error.name.split('.')[0]}'"
            raise InputError(f"_target_={path}", f"'{dotted}' needs '{error.name}'", instead) from error
        public = [option for option in dir(parent) if not option.startswith("_")]
        why = f"{getattr(parent, '__name__', parent)} has no '{name}'"
        raise InputError(f"_target_={path}", why, nearest(name, public)) from error
    except Exception as error:  # a module of others may fail in any way
        raise _broken(path, dotted, error) from error


def _broken(path: str, module: str, error: Exception) -> InputError:
    why = f"importing '{module}' fails: {type(error).__name__}: {error}"
    return InputError(f"_target_={path}", why, f"Correct it until python -c 'import {module}' works")


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
