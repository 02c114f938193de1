"""Find what the ``_target_`` of a config node names, and check its kind.

A config from another person must not be able to run arbitrary code. Each key accepts one kind of object (``kinds``),
which is checked before anything is called, and nothing from the standard library. A class of any installed package is
accepted if it is of that kind. The module of a target is imported, which runs it.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from alignlab.config.kinds import FORBIDDEN, expected_kinds, root_module
from alignlab.errors import InputError, nearest

CONTROL = {"_target_", "_partial_"}
"""Keys of a node that are not arguments."""


def checked_target(key: str, node: Mapping[str, Any], parent: Any = None, argument: str = "") -> Callable[..., Any]:
    """Import the class or function of a node, and check that its kind fits the key. Nothing is called.

    Args:
        key: Dotted key of the node.
        node: Node with ``_target_``.
        parent: Class or function of the enclosing node, if there is one.
        argument: Argument of ``parent`` that contains the node.

    Raises:
        InputError: It is not of the kind of its key, ``_partial_`` is wrong, it cannot be found, or it is from the
            standard library.
    """
    asked, path = f"{key}._target_={node['_target_']}", node["_target_"]
    try:
        target = locate(path)
    except InputError as error:
        raise InputError(f"{key}.{error.asked}", error.why, error.instead) from error
    kinds = expected_kinds(key, parent, argument)
    if not kinds:
        raise InputError(asked, "this key takes no object", f"Remove {key}._target_")
    kind = next((kind for kind in kinds if kind.fits(target)), None)
    if kind is None:
        wanted = ", or ".join(dict.fromkeys(kind.description for kind in kinds))
        raise InputError(asked, f"it should be {wanted}", "Name one, of any installed package")
    for option in ("_args_", "_convert_", "_recursive_"):
        if option in node:
            raise InputError(f"{key}.{option}={node[option]}", "arguments are given by name", f"Remove {key}.{option}")
    if node.get("_partial_", False) is not kind.is_partial(target):
        why = "training calls it" if kind.is_partial(target) else "it is made when the run starts"
        instead = f"Type {key}._partial_={'true' if kind.is_partial(target) else 'false'}"
        raise InputError(f"{asked} with _partial_={node.get('_partial_', False)}", why, instead)
    return target


@functools.cache
def _locate(path: str) -> Callable[..., Any]:
    parts = path.split(".")
    if parts[0] in FORBIDDEN or any(part.startswith("__") for part in parts):
        raise _refused(path)
    target = _first_module(path, parts[0])
    for index, part in enumerate(parts[1:], start=2):
        if not inspect.ismodule(target) and not inspect.isclass(target):
            raise InputError(f"_target_={path}", f"'{parts[index - 2]}' is not a module", "Name a class or a function")
        target = _member(path, target, part, ".".join(parts[:index]))
        if root_module(target) in FORBIDDEN:
            raise _refused(path)
    if not callable(target):
        raise InputError(f"_target_={path}", "it can be imported but not called", "Name a class or a function")
    return target


def locate(path: Any) -> Callable[..., Any]:
    """Import the class or function at a dotted path.

    Raises:
        InputError: It does not exist, cannot be imported, cannot be called, or is part of the standard library.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")):
        raise InputError(
            f"_target_={'null' if path is None else path}",
            "it is not a dotted path",
            "Name a class or function, as package.module.Name",
        )
    return _locate(path)


def _refused(path: str) -> InputError:
    why = "targets from the standard library, installers and readers of pickles are refused"
    return InputError(f"_target_={path}", why, "Name a class or function of a package that is meant to be configured")


def _first_module(path: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        instead = f"Install '{name}', or put its folder on PYTHONPATH"
        raise InputError(f"_target_={path}", f"'{name}' cannot be imported ({error})", instead) from error
    except Exception as error:  # a third-party module may raise anything
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
    except Exception as error:  # a third-party module may raise anything
        raise _broken(path, dotted, error) from error


def _broken(path: str, module: str, error: Exception) -> InputError:
    why = f"importing '{module}' fails: {type(error).__name__}: {error}"
    return InputError(f"_target_={path}", why, f"Correct it until python -c 'import {module}' works")
