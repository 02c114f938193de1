"""Names, types and ranges of the values of one section, wherever its hints come from."""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from alignlab.config.schema.names import suggest
from alignlab.errors import InputError

OBJECTS = {"needs_python_object", "is_instance_of", "callable_type"}
"""Errors that say that the type is one that only a node with ``_target_`` can make."""

NOT_GIVEN = "<not given>"
"""Stands in for a value that the user still has to give."""


@dataclass
class Findings:
    """What a pass over the config has found.

    Args:
        known: Every dotted key that exists.
        unknown: Dotted keys that do not, with their values.
        errors: Other faults.
    """

    known: set[str] = field(default_factory=set)
    unknown: dict[str, Any] = field(default_factory=dict)
    errors: list[InputError] = field(default_factory=list)

    def all(self) -> list[InputError]:
        """Every fault, the unknown keys each with the nearest real name."""
        spelling = [
            InputError(f"{key}={_shown(value)}", "there is no such key", suggest(key, self.known))
            for key, value in (_first_leaf(*item) for item in self.unknown.items())
        ]
        return spelling + self.errors


def check_names(path: str, values: Mapping[str, Any], names: set[str] | None, findings: Findings) -> None:
    """Note the names that a section has, and its values whose names it has not (``None``: any name goes)."""
    findings.known |= {_join(path, name) for name in names or ()}
    if names is not None:
        findings.unknown |= {_join(path, key): value for key, value in values.items() if key not in names}


def check_value(path: str, value: Any, hint: Any, findings: Findings) -> None:
    """Note a value of the wrong type or out of its range.

    Args:
        path: Dotted key.
        value: Plain containers and leaves.
        hint: Annotation that pydantic understands; JSON's own types are meant strictly (``"1"`` is no number).
        findings: What is added to.
    """
    adapter = _adapter(hint)
    if adapter is None or value == NOT_GIVEN:
        return
    if isinstance(value, float) and not math.isfinite(value):
        findings.errors.append(InputError(f"{path}={value}", "it should be a finite number", f"Type {path}=VALUE"))
        return
    try:
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        findings.errors.append(InputError(f"{path}={_shown(value)}", _why(error), f"Type {path}=VALUE"))


@functools.lru_cache(maxsize=None, typed=True)
def _hashed_adapter(hint: Any) -> TypeAdapter | None:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticUserError, NameError):  # a type that pydantic cannot check: the target will
        return None


def _adapter(hint: Any) -> TypeAdapter | None:
    try:
        return _hashed_adapter(hint)
    except TypeError:  # unhashable metadata
        return _hashed_adapter.__wrapped__(hint)


def _why(error: ValidationError) -> str:
    messages = [fault["msg"] for fault in error.errors(include_url=False) if fault["type"] not in OBJECTS]
    wanted = dict.fromkeys(message.removeprefix("Input should be ").replace("None", "null") for message in messages)
    return f"it should be {', or '.join(wanted) or 'a node with _target_'}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _first_leaf(path: str, value: Any) -> tuple[str, Any]:
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        path = f"{path}.{key}"
    return path, value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
