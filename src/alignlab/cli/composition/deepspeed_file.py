"""``strategy.config_file=``: apply a DeepSpeed JSON file to the resolved config."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.cli.composition.refusals import parse
from alignlab.distributed.strategies.config_file import take_over
from alignlab.errors import InputError, raise_all
from alignlab.system.paths import typed_path

TYPED = {"optimizer", "scheduler"}
SECTIONS = {"zero_optimization", "fp16", "bf16", "activation_checkpointing"} | TYPED
"""Sections that are checked here; the others are passed to DeepSpeed."""

CHANGED = ("strategy", "optimizer", "scheduler", "trainer", "data", "model", "checkpoint")
"""Sections that a file can change."""


def take_over_file(config: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the config with the settings of the file; without a file, the config as it is.

    Args:
        config: Resolved config, not yet checked.
        words: Overrides as typed.

    Raises:
        InputError: The file cannot be read, or contradicts typed settings.
    """
    strategy = config.get("strategy")
    path = strategy.get("config_file") if isinstance(strategy, Mapping) else None
    if path is None or not isinstance(strategy.get("config"), Mapping):
        return config  # a file for another strategy than DeepSpeed is refused by the schema
    if not isinstance(path, str):
        raise InputError(f"strategy.config_file={path}", "it should be a path", "Name a DeepSpeed JSON file")
    file = read(typed_path(path, "strategy.config_file"))
    return config | take_over({key: config[key] for key in CHANGED}, file, typed_keys(words))


def typed_keys(words: Sequence[str]) -> set[str]:
    """Dotted keys and groups that were typed on the command line."""
    overrides = [override for word in words if (override := parse(word)) is not None]
    return {override.key_or_group.replace("/", ".") for override in overrides}


def read(path: Path) -> dict[str, Any]:
    """Read the file.

    Raises:
        InputError: The file does not exist, or it is not a JSON object.
    """
    asked = f"strategy.config_file={path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(asked, f"it cannot be read ({error.strerror})", "Name a DeepSpeed JSON file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(asked, f"it is not valid JSON: {error}", "Correct it there") from error
    if not isinstance(content, dict):
        raise InputError(asked, "it holds no JSON object", "Name a DeepSpeed JSON file")
    wrong = _wrong_types(content)
    raise_all([InputError(f"{asked} with {key}", f"it should be {kind}", "Correct it there") for key, kind in wrong])
    return content


def _wrong_types(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find keys of ``SECTIONS`` whose values have another type than DeepSpeed documents."""
    for name in SECTIONS & content.keys():
        section = content[name]
        if not isinstance(section, dict):
            yield name, "an object"
            continue
        if name in TYPED and not isinstance(section.get("type"), str):
            yield f"{name}.type", "a text"
        if name in TYPED and not isinstance(section.get("params", {}), dict):
            yield f"{name}.params", "an object"
