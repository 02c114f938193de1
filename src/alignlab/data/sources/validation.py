"""Validation parts of a source: one without a name, or several that are measured separately and together."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from alignlab.errors import InputError, raise_all
from alignlab.metrics import METRICS

NAME = re.compile(r"[A-Za-z0-9_.-]+")
TAKEN = {name.split("/")[0] for name in METRICS if "/" in name}
"""First words of metrics, which a set must not have: ``val/rewards/margins`` would be two metrics."""


def validation_parts(key: str, value: Any) -> dict[str, Any]:
    """The validation parts that a setting names, by the split that the source reads them as.

    Args:
        key: Name of the setting.
        value: One part; several by name, which become ``validation/NAME``; or None for none.

    Raises:
        InputError: A name cannot stand in that of a metric, or there is none.
    """
    if value in (None, "", []):
        return {}
    if not isinstance(value, Mapping):
        return {"validation": value}
    if not value:
        raise InputError(f"data.{key}={{}}", "it names no validation set", f"Type data.{key}=null for none")
    bad = [name for name in value if not NAME.fullmatch(str(name)) or name in TAKEN]
    why = "names of validation sets become parts of metrics (val/NAME/loss)"
    instead = f"Use letters, digits, '.', '_' and '-', and none of {', '.join(sorted(TAKEN))}"
    raise_all([InputError(f"data.{key}.{name}", why, instead) for name in bad])
    return {f"validation/{name}": part for name, part in value.items()}


def set_names(splits: Iterable[str]) -> tuple[str, ...]:
    """Names of the validation sets among the splits of a source."""
    return tuple(split.removeprefix("validation/") for split in splits if split.startswith("validation/"))


def splits_of(part: str, splits: Iterable[str]) -> list[str]:
    """The splits that a part consists of: itself, or all named ones for ``validation``."""
    return [split for split in splits if split == part or split.startswith(f"{part}/")]
