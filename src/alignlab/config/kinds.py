"""The kind of object that each key of a config accepts: a class, or a function annotated to return one.

A list of forbidden objects cannot be complete, so this is a list of the expected ones. It is checked before anything is
called. A key that is not in ``EXPECTED_KINDS`` accepts the type that its argument is annotated with in the class or
function of the enclosing node, and nothing without an annotation.
"""

import collections.abc
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Union

from alignlab.config.signatures import call_chain, hints, parameters

FORBIDDEN = sys.stdlib_module_names | {"_distutils_hack", "cloudpickle", "dill", "hydra", "joblib", "omegaconf", "pip"}
FORBIDDEN |= {"pkg_resources", "setuptools", "wheel", "yaml"}
"""Top-level modules that targets must not come from: the standard library, installers, readers of pickles."""


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Args:
        description: Description for errors.
        fits: Whether a class or function is of the kind.
        is_partial: Whether it must have ``_partial_: true``, because training calls it with further arguments.
    """

    description: str
    fits: Callable[[Any], bool]
    is_partial: Callable[[Any], bool]


def root_module(target: Any) -> str:
    """Top-level module that an object comes from."""
    name = target.__name__ if inspect.ismodule(target) else getattr(target, "__module__", None)
    return str(name or "").split(".")[0]


def of_class(name: str, is_partial: bool = False, functions: bool = True) -> Kind:
    """Subclasses of a class, and functions annotated to return one.

    Args:
        name: Dotted path of the class, which is imported when needed.
        is_partial: Whether training calls it.
        functions: Whether functions are accepted.
    """

    def fits(target: Any) -> bool:
        return (functions or inspect.isclass(target)) and constructs(target, _imported(name))

    return Kind(f"a {name}", fits, lambda target: is_partial)


def with_methods(description: str, *methods: str) -> Kind:
    """Classes with certain methods.

    Args:
        description: Description of such a class.
        methods: Names of the methods.
    """

    def fits(target: Any) -> bool:
        return inspect.isclass(target) and all(_is_function(getattr(target, name, None)) for name in methods)

    return Kind(f"{description}, a class with {' and '.join(methods)}", fits, lambda target: False)


def called_with(description: str, *names: str) -> Kind:
    """Functions with certain arguments, and classes whose objects are called with them.

    Args:
        description: Description of such a function.
        names: Names of the arguments.
    """

    def fits(target: Any) -> bool:
        function = target.__call__ if inspect.isclass(target) else target
        return _is_function(function) and all(name in parameters(function) for name in names)

    return Kind(f"{description}, called with {', '.join(names)}", fits, lambda target: not inspect.isclass(target))


def returning(kinds: tuple[type, ...], takes: type | None = None) -> Kind:
    """Functions annotated to return an object of some classes; training calls them.

    Args:
        kinds: Classes of the result.
        takes: Class of the first argument; None for any. A first argument without annotation is accepted.
    """
    words = f"annotated to return {' or '.join(kind.__name__ for kind in kinds)}"
    words = f"a function {words}" if takes is None else f"a function of {takes.__name__}, {words}"

    def fits(target: Any) -> bool:
        return _is_function(target) and _returns(target, kinds) and (takes is None or _takes(target, takes))

    return Kind(words, fits, lambda target: True)


SOURCE = with_methods("a source of rows", "rows", "fingerprint")

EXPECTED_KINDS: dict[str, Kind] = {
    "method": of_class("alignlab.methods.base.Method", functions=False),
    "method.reward.*": called_with("a reward", "completions"),
    "method.reward_limits": of_class("alignlab.rewards.scorer.Limits"),
    "model": with_methods("a source of weights", "load_model", "load_tokenizer"),
    "data.source": SOURCE,
    "data.source.sources.*": SOURCE,
    "peft": of_class("peft.PeftConfig"),
    "peft.quantization": of_class("transformers.utils.quantization_config.QuantizationConfigMixin"),
    "rollout": of_class("alignlab.rollout.sampler.base.Sampler", functions=False),
    "optimizer": of_class("torch.optim.Optimizer", is_partial=True),
    "scheduler": of_class("torch.optim.lr_scheduler.LRScheduler", is_partial=True),
    "strategy": of_class("lightning.pytorch.strategies.Strategy"),
    "trainer": of_class("lightning.Trainer"),
    "logger.*": of_class("lightning.pytorch.loggers.Logger"),
    "callbacks.*": of_class("lightning.Callback"),
}
"""Kinds by dotted key; ``*`` matches any name."""


def expected_kinds(key: str, parent: Any = None, argument: str = "") -> list[Kind]:
    """The kinds of object that a key accepts; empty for none.

    Args:
        key: Dotted key.
        parent: Class or function of the enclosing node, if there is one.
        argument: Argument of ``parent`` that contains the key.
    """
    kind = next((kind for pattern, kind in EXPECTED_KINDS.items() if _matches(pattern, key)), None)
    if kind is not None:
        return [kind]
    annotated = [hints(function).get(argument) for function in call_chain(parent)] if parent is not None else []
    return [kind for hint in annotated for kind in _kinds_of(hint)]


def constructs(target: Any, kind: type) -> bool:
    """Whether a target is a subclass of a class, or a function annotated to return one."""
    if inspect.isclass(target):
        return issubclass(target, kind)
    return _is_function(target) and _returns(target, (kind,))


def _returns(function: Callable[..., Any], kinds: tuple[type, ...]) -> bool:
    results = _members(hints(function).get("return"))
    return all(inspect.isclass(result) and issubclass(result, kinds) for result in results)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _takes(function: Callable[..., Any], kind: type) -> bool:
    first = next(iter(parameters(function)), None)
    annotated = hints(function).get(first, kind)
    return inspect.isclass(annotated) and issubclass(kind, annotated)


def _is_function(target: Any) -> bool:
    """Whether it is a Python function, so that it has a signature."""
    return isinstance(target, types.FunctionType)


@functools.cache
def _imported(name: str) -> type:
    module, _, last = name.rpartition(".")
    return getattr(import_module(module), last)


def _matches(pattern: str, key: str) -> bool:
    wanted, parts = pattern.split("."), key.split(".")
    return len(wanted) == len(parts) and all(word in ("*", part) for word, part in zip(wanted, parts, strict=True))


def _kinds_of(hint: Any) -> Iterator[Kind]:
    """Kinds in an annotation, at any depth: ``dict[str, Callable[..., Tensor]] | None`` has one."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from _kinds_of(inner[0])
    elif collections.abc.Callable in (origin, hint):
        results = _classes(inner[-1]) if inner else _tensor()
        if results:
            yield returning(results, _first_class(inner))
    elif origin in (Union, types.UnionType) or (inspect.isclass(origin) and origin is not type):
        for argument in inner:
            yield from _kinds_of(argument)
    elif inspect.isclass(hint) and root_module(hint) not in FORBIDDEN:
        yield Kind(
            f"a {hint.__module__}.{hint.__name__}", lambda target: constructs(target, hint), lambda target: False
        )


def _first_class(inner: tuple[Any, ...]) -> type | None:
    """The class of the first argument in ``Callable[[Groups], Tensor]`` or ``Callable[Concatenate[Pairs, ...], …]``."""
    arguments = inner[0] if inner else ...
    listed = arguments if isinstance(arguments, list) else typing.get_args(arguments)
    first = listed[0] if listed else None
    return first if inspect.isclass(first) and root_module(first) not in FORBIDDEN else None


def _classes(hint: Any) -> tuple[type, ...]:
    """The classes of a result annotation, without those of the standard library; Tensor for ``Any``."""
    if hint is Any:
        return _tensor()
    return tuple(one for one in _members(hint) if inspect.isclass(one) and root_module(one) not in FORBIDDEN)


def _tensor() -> tuple[type, ...]:
    return (_imported("torch.Tensor"),)
