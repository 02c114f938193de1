"""Read the arguments of a target from its source, without importing it, which takes seconds where torch is needed.

An outline is a class or function with the arguments of the original and nothing else: no defaults, no code, and no
annotations but those of ``Settings``. ``signatures`` reads it as it would read the original. Only packages that the
options of ``conf/`` name are read this way, and only constructs whose meaning is plain; the rest raises ``Unclear``.
"""

import ast
import dataclasses
import functools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from alignlab.types.settings import Settings

PACKAGES = ("alignlab", "bitsandbytes", "lightning", "peft", "torch", "transformers")
"""Packages whose targets are read."""

EMPTY_BASES = ("abc.ABC", "typing.Generic", "typing.NamedTuple")
"""Bases that have no ``__init__``."""

Definition = ast.ClassDef | ast.FunctionDef


class Unclear(Exception):
    """The source does not plainly say what the arguments are."""


class Module(NamedTuple):
    """A module that is read and not imported.

    Args:
        name: Its dotted name.
        package: The package against which its relative imports are resolved.
        folder: Folder of its submodules; None if it is no package.
        names: What it defines, by name: a definition, the dotted path of what an import or assignment names, or an
            empty text for any other value.
        stars: Modules of which it imports everything.
    """

    name: str
    package: str
    folder: Path | None
    names: dict[str, Definition | str]
    stars: tuple[str, ...]


def outline(path: str) -> Callable[..., Any]:
    """The outline of the class or function at a dotted path.

    Raises:
        Unclear: It is not one of ``PACKAGES``, does not exist, or is not plainly a class or function.
    """
    if path.split(".")[0] not in PACKAGES:
        raise Unclear(path)
    return _outline(*_find(path))


@functools.cache
def _outline(module: Module, name: str) -> Callable[..., Any]:
    node = module.names[name]
    if isinstance(node, ast.FunctionDef):
        return _function(module, node)
    if f"{module.name}.{name}" == f"{Settings.__module__}.{Settings.__name__}":
        return Settings
    made_by_dataclass = [one for one in map(_called, node.decorator_list) if one.split(".")[-1] == "dataclass"]
    if len(made_by_dataclass) < len(node.decorator_list):
        raise Unclear(f"a decorator of {name}")
    inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    if len(inits) > 1:
        raise Unclear(f"{name} with several constructors")
    body = {"__init__": _function(module, inits[0])} if inits else {}
    if inits and inits[0].args.kwarg is None:
        return type(name, (), body)  # arguments of the bases are not accepted
    bases = tuple(dict.fromkeys(_base(module, base) for base in node.bases)) or (object,)
    if inits or not made_by_dataclass:
        return type(name, bases, body)
    return dataclasses.make_dataclass(name, _fields(node), bases=bases, kw_only=True)


def _function(module: Module, node: ast.FunctionDef) -> Callable[..., Any]:
    """A function with the same arguments, all of them annotated with their ``Settings`` or not at all."""
    args = node.args
    named = [argument for argument in [*args.posonlyargs, *args.args, *args.kwonlyargs] if argument.arg != "self"]
    variadic = [f"*{args.vararg.arg}" if args.vararg else "*"] if args.vararg or named else []
    variadic += [f"{argument.arg}=None" for argument in named] + ([f"**{args.kwarg.arg}"] if args.kwarg else [])
    made: dict[str, Any] = {}
    exec(f"def {node.name}(self, {', '.join(variadic)}): ...", made)
    function = made[node.name]
    function.__annotations__ = {
        argument.arg: kind for argument in named if (kind := _settings(module, argument.annotation)) is not None
    }
    return function


def _settings(module: Module, annotation: ast.expr | None) -> type | None:
    """The outline of an annotation that is a ``Settings`` class; None for any other."""
    if not isinstance(annotation, ast.Name):
        return None
    found = module.names.get(annotation.id)
    if not found or (isinstance(found, str) and not found.startswith("alignlab.")):
        return None
    try:
        target, name = _find(f"{module.name}.{annotation.id}")
    except Unclear:  # a union or another expression
        return None
    kind = _outline(target, name) if isinstance(target.names[name], ast.ClassDef) else None
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, type, Any]]:
    """Fields of a dataclass, which all have a default here, since only their names are wanted."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            text = ast.unparse(line.annotation)
            if "ClassVar" in text:
                continue
            if "InitVar" in text or "KW_ONLY" in text:
                raise Unclear(f"{line.target.id} of {node.name}")
            options = line.value.keywords if isinstance(line.value, ast.Call) else []
            is_argument = not any(one.arg == "init" and ast.unparse(one.value) == "False" for one in options)
            yield line.target.id, object, dataclasses.field(default=None, init=is_argument)


def _base(module: Module, base: ast.expr) -> type:
    base = base.value if isinstance(base, ast.Subscript) else base
    first, _, rest = ast.unparse(base).partition(".")
    found = module.names.get(first)
    path = f"{found}{'.' * bool(rest)}{rest}" if isinstance(found, str) else f"{module.name}.{first}"
    if path in EMPTY_BASES:
        return object
    kind = _outline(*_find(path))
    if not isinstance(kind, type):
        raise Unclear(path)
    return kind


def _called(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


@functools.cache
def _find(path: str) -> tuple[Module, str]:
    """The module with the definition that a dotted path leads to, through any number of imports, and its name there."""
    parent, _, name = path.rpartition(".")
    module = _module(parent)
    found = module.names.get(name)
    if isinstance(found, ast.ClassDef | ast.FunctionDef):
        return module, name
    if found:
        return _find(found)
    for star in module.stars:
        if name in _module(star).names:
            return _find(f"{star}.{name}")
    raise Unclear(path)


@functools.cache
def _module(name: str) -> Module:
    parent, _, last = name.rpartition(".")
    if not parent:
        if name not in PACKAGES or (spec := find_spec(name)) is None or not spec.submodule_search_locations:
            raise Unclear(name)
        folder = Path(spec.submodule_search_locations[0])
    else:
        folder = _module(parent).folder
        if folder is None:
            raise Unclear(name)
        folder = folder / last
    is_package = (folder / "__init__.py").is_file()
    file = folder / "__init__.py" if is_package else folder.with_suffix(".py")
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise Unclear(name) from error
    package = name if is_package else parent
    names, stars = {}, []
    for node in _statements(tree.body):
        if isinstance(node, Definition):
            names.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(node, package)
            stars += [origin for alias in node.names if alias.name == "*" and origin.split(".")[0] in PACKAGES]
            for alias in node.names:
                names.setdefault(alias.asname or alias.name, f"{origin}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names.setdefault(alias.asname or first, alias.name if alias.asname else first)
        elif isinstance(node, ast.Assign):
            other = f"{name}.{node.value.id}" if isinstance(node.value, ast.Name) else ""
            for target in filter(lambda one: isinstance(one, ast.Name), node.targets):
                names[target.id] = other if target.id not in names else ""
    return Module(name, package, folder if is_package else None, _Names(names), tuple(stars))


class _Names(dict):
    """Names of a module, compared by identity, so that modules can be keys of a cache."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, and those under its conditions, such as ``if TYPE_CHECKING``."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            handlers = [line for handler in getattr(node, "handlers", ()) for line in handler.body]
            yield from _statements([*node.body, *handlers, *node.orelse])


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The dotted name of the module of ``from … import``."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
