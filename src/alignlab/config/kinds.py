"""What each place of a config takes: a class of its kind, or a function that is annotated to return the kind.

A list of what is forbidden cannot be complete, so this is a list of what is expected. It is asked before anything is
called. A place that is not in ``PLACES`` takes what the argument that stands there is annotated with in the class or
function around it; one without such an annotation takes nothing.
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

from alignlab.config.signatures import chain, hints, parameters

LIBRARY = sys.stdlib_module_names | {"_distutils_hack", "cloudpickle", "dill", "hydra", "joblib", "omegaconf", "pip"}
LIBRARY |= {"pkg_resources", "setuptools", "wheel", "yaml"}
"""Top-level modules that nothing in a config may come from: the standard library, installers, readers of pickles."""


@dataclass(frozen=True)
class Kind:
    """What a place takes.

    Args:
        words: As an error says it.
        fits: Whether a class or function is of the kind.
        waits: Whether one that fits is only made ready here and called by training, with further arguments
            (``_partial_: true``).
    """

    words: str
    fits: Callable[[Any], bool]
    waits: Callable[[Any], bool]


def home(found: Any) -> str:
    """Top-level module that an object comes from."""
    name = found.__name__ if inspect.ismodule(found) else getattr(found, "__module__", None)
    return str(name or "").split(".")[0]


def of_class(name: str, waits: bool = False, functions: bool = True) -> Kind:
    """Subclasses of a class, and functions annotated to return one.

    Args:
        name: Dotted path of the class, imported when it is asked for.
        waits: Whether training calls it.
        functions: Whether functions will do.
    """

    def fits(target: Any) -> bool:
        return (functions or inspect.isclass(target)) and makes(target, _imported(name))

    return Kind(f"a {name}", fits, lambda target: waits)


def with_methods(words: str, *methods: str) -> Kind:
    """Classes that define methods.

    Args:
        words: What such a class is.
        methods: Names.
    """

    def fits(target: Any) -> bool:
        return inspect.isclass(target) and all(_is_function(getattr(target, name, None)) for name in methods)

    return Kind(f"{words}, a class with {' and '.join(methods)}", fits, lambda target: False)


def called_with(words: str, *names: str) -> Kind:
    """Classes whose objects are called with arguments of these names, and functions that are.

    Args:
        words: What it is.
        names: Of arguments.
    """

    def fits(target: Any) -> bool:
        function = target.__call__ if inspect.isclass(target) else target
        return _is_function(function) and all(name in parameters(function) for name in names)

    return Kind(f"{words}, called with {', '.join(names)}", fits, lambda target: not inspect.isclass(target))


def returning(kinds: tuple[type, ...], takes: type | None = None) -> Kind:
    """Functions annotated to return an object of one of the classes; training calls them.

    Args:
        kinds: What is returned.
        takes: Class of the first argument, where it decides; one that is not annotated may be anything.
    """
    words = f"annotated to return {' or '.join(kind.__name__ for kind in kinds)}"
    words = f"a function {words}" if takes is None else f"a function of {takes.__name__}, {words}"

    def fits(target: Any) -> bool:
        return _is_function(target) and _returns(target, kinds) and (takes is None or _takes(target, takes))

    return Kind(words, fits, lambda target: True)


SOURCE = with_methods("a source of rows", "rows", "fingerprint")

PLACES: dict[str, Kind] = {
    "method": of_class("alignlab.methods.base.Method", functions=False),
    "method.reward.*": called_with("a reward", "completions"),
    "model": with_methods("a source of weights", "load_model", "load_tokenizer"),
    "data.source": SOURCE,
    "data.source.sources.*": SOURCE,
    "peft": of_class("peft.PeftConfig"),
    "peft.quantization": of_class("transformers.utils.quantization_config.QuantizationConfigMixin"),
    "rollout": of_class("alignlab.rollout.sampler.base.Sampler", functions=False),
    "optimizer": of_class("torch.optim.Optimizer", waits=True),
    "scheduler": of_class("torch.optim.lr_scheduler.LRScheduler", waits=True),
    "strategy": of_class("lightning.pytorch.strategies.Strategy"),
    "trainer": of_class("lightning.Trainer"),
    "logger.*": of_class("lightning.pytorch.loggers.Logger"),
    "callbacks.*": of_class("lightning.Callback"),
}
"""Kinds by dotted key; ``*`` is any one name."""


def kinds_at(place: str, around: Any = None, argument: str = "") -> list[Kind]:
    """What a place takes.

    Args:
        place: Dotted key.
        around: Class or function of the node that the place lies in, if any.
        argument: Of that, the argument that the place lies in.
    """
    kind = next((kind for pattern, kind in PLACES.items() if _matches(pattern, place)), None)
    if kind is not None:
        return [kind]
    annotated = [hints(function).get(argument) for function in chain(around)] if around is not None else []
    return [kind for hint in annotated for kind in _kinds_of(hint)]


def makes(target: Any, kind: type) -> bool:
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


def _is_function(found: Any) -> bool:
    """Whether it is written in Python, so that its signature says what it takes."""
    return isinstance(found, types.FunctionType)


@functools.cache
def _imported(name: str) -> type:
    module, _, last = name.rpartition(".")
    return getattr(import_module(module), last)


def _matches(pattern: str, place: str) -> bool:
    wanted, parts = pattern.split("."), place.split(".")
    return len(wanted) == len(parts) and all(word in ("*", part) for word, part in zip(wanted, parts, strict=True))


def _kinds_of(hint: Any) -> Iterator[Kind]:
    """Kinds that an annotation names, wherever in it: ``dict[str, Callable[..., Tensor]] | None`` names one."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        yield from _kinds_of(inner[0])
    elif collections.abc.Callable in (origin, hint):
        results = _classes(inner[-1]) if inner else _tensor()
        if results:
            yield returning(results, _first_class(inner))
    elif origin in (Union, types.UnionType) or (inspect.isclass(origin) and origin is not type):
        for part in inner:
            yield from _kinds_of(part)
    elif inspect.isclass(hint) and home(hint) not in LIBRARY:
        yield Kind(f"a {hint.__module__}.{hint.__name__}", lambda target: makes(target, hint), lambda target: False)


def _first_class(inner: tuple[Any, ...]) -> type | None:
    """The class of the first argument in ``Callable[[Groups], Tensor]`` or ``Callable[Concatenate[Pairs, ...], …]``."""
    arguments = inner[0] if inner else ...
    listed = arguments if isinstance(arguments, list) else typing.get_args(arguments)
    first = listed[0] if listed else None
    return first if inspect.isclass(first) and home(first) not in LIBRARY else None


def _classes(hint: Any) -> tuple[type, ...]:
    """The classes that a function is annotated to return, as far as nothing but its own kind returns them."""
    if hint is Any:
        return _tensor()
    return tuple(one for one in _members(hint) if inspect.isclass(one) and home(one) not in LIBRARY)


def _tensor() -> tuple[type, ...]:
    return (_imported("torch.Tensor"),)
