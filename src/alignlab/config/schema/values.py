"""Check the names, types and ranges of the values of a section."""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from alignlab.config.schema.names import suggest
from alignlab.config.schema.other_tools import OTHER_VALUES
from alignlab.errors import InputError

OBJECTS = {"needs_python_object", "is_instance_of", "callable_type"}
"""Types of pydantic errors for values that must be a node with ``_target_``."""

NOT_GIVEN = "<not given>"
"""Placeholder of a missing value."""


@dataclass
class Findings:
    """Result of the checks of a config.

    Args:
        known: All dotted keys that exist.
        unknown: Dotted keys that do not exist, with their values.
        errors: Other errors.
    """

    known: set[str] = field(default_factory=set)
    unknown: dict[str, Any] = field(default_factory=dict)
    errors: list[InputError] = field(default_factory=list)

    def all(self) -> list[InputError]:
        """All errors; those of unknown keys with a suggestion."""
        spelling = [
            InputError(f"{key}={_shown(value)}", "there is no such key", suggest(key, self.known))
            for key, value in (_first_leaf(*item) for item in self.unknown.items())
        ]
        return spelling + self.errors


def check_names(path: str, values: Mapping[str, Any], names: set[str] | None, findings: Findings) -> None:
    """Add the names of a section to ``known``, and its other keys to ``unknown``. ``None`` accepts any name."""
    findings.known |= {_join(path, name) for name in names or ()}
    if names is not None:
        findings.unknown |= {_join(path, key): value for key, value in values.items() if key not in names}


def check_value(path: str, value: Any, hint: Any, findings: Findings) -> None:
    """Add an error if a value is of the wrong type or out of range.

    Args:
        path: Dotted key.
        value: Plain containers and values.
        hint: Annotation for pydantic, checked strictly (``"1"`` is not a number).
        findings: Collects the errors.
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
        findings.errors.append(InputError(f"{path}={_shown(value)}", _why(error), instead_of(path, value)))


OPTIONS = {"peft": "lora", "method": "dpo", "logger": "csv", "callbacks": "none", "method.loss": "sigmoid"}
OPTIONS |= {"strategy": "ddp", "optimizer": "adamw", "scheduler": "cosine", "rollout": "hf", "model": "pocket"}
OPTIONS |= {"method.divergence": "reverse_kl", "method.reward": "exact_answer", "trainer": "default"}
"""An option of each group of the config, by the key that it fills."""


def instead_of(path: str, value: Any = None) -> str:
    """What to type where a value is missing or of the wrong type.

    Args:
        path: Dotted key.
        value: The value, if there is one.
    """
    group = path.replace(".", "/")
    if path not in OPTIONS:
        return f"Type {path}={OTHER_VALUES.get(path, {}).get(str(value), 'VALUE')}"
    if isinstance(value, str):
        return f"Type {group}={value}"
    if isinstance(value, Mapping) and value:
        return f"Type {group}={OPTIONS[path]}, or another option, beside the keys below it"
    return f"Type {group}={'none' if path == 'logger' else OPTIONS[path]}, or another option"


@functools.lru_cache(maxsize=None, typed=True)
def _hashed_adapter(hint: Any) -> TypeAdapter | None:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticUserError, NameError):  # a type that pydantic cannot check
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
