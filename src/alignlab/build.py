"""From a config node to the object that its ``_target_`` names: the only door through which configuration runs code.

Any importable class or function may be named, so a method, model, reward, logger or callback of one's own needs no
entry here. Refused are the standard library's ways to run commands, unpickle, import, or touch files and the
interpreter (``REFUSED``): a config that somebody sent should not be a program. This catches accidents and crude traps;
a package that one installs and names is trusted.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from alignlab.errors import InputError, nearest

# fmt: off
REFUSED = frozenset({
    "_pickle", "asyncio", "builtins", "cloudpickle", "code", "codeop", "concurrent", "ctypes", "dill", "gc",
    "hydra", "importlib", "inspect", "io", "joblib", "marshal", "multiprocessing", "nt", "operator", "os", "pdb",
    "pickle", "pkgutil", "posix", "pty", "pydoc", "runpy", "shelve", "shutil", "signal", "site", "socket",
    "subprocess", "sys", "tempfile", "threading", "timeit", "types", "webbrowser", "yaml",
})
"""Top-level modules whose members are no targets."""
# fmt: on


def build(node: Mapping[str, Any] | None, **extra: Any) -> Any:
    """Make the object that a node describes, its nested nodes first.

    Args:
        node: ``_target_`` and its keyword arguments, or None; interpolations are resolved, containers become plain.
        **extra: Further keyword arguments that no config can hold (a model, a tokenizer); they win over the node's.

    Returns:
        The object; with ``_partial_: true`` a ``functools.partial``; None for None.

    Raises:
        InputError: The target is refused or cannot be imported, an argument is missing, or the target refuses a value.
    """
    if node is None:
        return None
    node = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    for target in named_targets(node):
        locate(target)
    name, partial = node.pop("_target_"), node.pop("_partial_", False)
    target = locate(name)
    try:
        arguments = instantiate(node | {"_convert_": "all"}) | extra
        if partial:
            return functools.partial(target, **arguments)
        _refuse_missing(name, target, arguments)
        return target(**arguments)
    except InstantiationException as error:
        raise _cause(error) from error
    except (ValueError, MisconfigurationException) as error:
        raise InputError(f"{name} with {_shown(node)}", str(error), "Change what it names") from error


def build_all(nodes: Mapping[str, Mapping[str, Any] | None], **extra: Any) -> dict[str, Any]:
    """Make the objects of a group whose nodes stand side by side (``logger``, ``callbacks``).

    Args:
        nodes: Nodes by name; None leaves one out.
        **extra: What no config can hold, for those targets that have an argument by the name.
    """
    nodes = {name: node for name, node in nodes.items() if node is not None}
    return {name: build(node, **_taken(locate(node["_target_"]), extra)) for name, node in nodes.items()}


def named_targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` of a plain tree, the outermost first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from named_targets(value)


@functools.cache
def locate(path: str) -> Callable[..., Any]:
    """The class or function at a dotted path.

    Raises:
        InputError: It does not exist, cannot be imported, cannot be called, or is refused.
    """
    parts = str(path).split(".")
    if parts[0] in REFUSED or any(part.startswith("__") for part in parts):
        raise _refused(path)
    found = _first_module(path, parts[0])
    for index, part in enumerate(parts[1:], start=2):
        found = _member(path, found, part, ".".join(parts[:index]))
        if _home(found) in REFUSED:
            raise _refused(path)
    if not callable(found):
        raise InputError(f"_target_={path}", "it can be imported but not called", "Name a class or a function")
    return found


def _refused(path: str) -> InputError:
    why = "the standard library's tools for code, files and processes are no targets, whoever wrote the config"
    return InputError(f"_target_={path}", why, "Name a class or function of a package that is meant to be configured")


def _first_module(path: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        instead = f"Install '{name}', or put its folder on PYTHONPATH"
        raise InputError(f"_target_={path}", f"'{name}' cannot be imported ({error})", instead) from error


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


def _home(found: Any) -> str:
    """Top-level module that an object comes from, so that no alias leads around ``REFUSED``."""
    name = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None)
    return str(name or "").split(".")[0]


def _taken(target: Callable[..., Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name in inspect.signature(target).parameters}


def _refuse_missing(name: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # some classes written in C tell nothing
        return
    skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in skipped]
    missing = [parameter for parameter in required if parameter not in arguments]
    if missing:
        settings = ", ".join(f"{parameter}: …" for parameter in missing)
        raise InputError(f"_target_={name}", f"it also needs {', '.join(missing)}", f"Add {settings} beside _target_")


def _cause(error: BaseException) -> BaseException:
    """The refusal, or the first exception, behind what Hydra wraps around the errors of nested nodes."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _shown(node: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in node.items() if not isinstance(value, Mapping)}
    return ", ".join(f"{key}={value}" for key, value in plain.items()) or "its defaults"
