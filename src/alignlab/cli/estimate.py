"""Estimate memory, time and communication of a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from alignlab.cli.composition.command import command
from alignlab.config import schema
from alignlab.config.schema.root import ESTIMATE


def main(words: Sequence[str]) -> int:
    """Print what a training would need, without reading weights; ``estimate.json=FILE`` also writes it.

    Args:
        words: Command line after the verb.

    Returns:
        Exit code.
    """
    return command("estimate", words, check, show, ESTIMATE)


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check the config as for training on the named hardware; return it resolved."""
    from alignlab.cli.composition.hidden import hide_config
    from alignlab.config import compat

    hide_config(cfg)
    config = schema.check(cfg, ESTIMATE, on_hardware)
    compat.check(config)
    return config


def on_hardware(config: dict[str, Any]) -> dict[str, Any]:
    """The config for the hardware that it names; each of its cards computes in bfloat16."""
    from alignlab.config.precision import MIXED
    from alignlab.estimate.cards import parse_hardware

    word, trainer = config["estimate"].get("hardware"), config.get("trainer")
    if not isinstance(word, str) or not isinstance(trainer, dict):
        return config
    precision = {"precision": MIXED} if trainer.get("precision", "given") is None else {}
    return config | {"trainer": trainer | parse_hardware(word).trainer | precision}


def show(config: dict[str, Any]) -> None:
    """Print the estimate, and write it if requested."""
    from alignlab.assemble import open_model_and_data
    from alignlab.estimate.build import Models
    from alignlab.estimate.changes import cheapest_changes
    from alignlab.estimate.estimate import estimate, hardware_of
    from alignlab.estimate.table import as_json, estimate_card
    from alignlab.run_folder import console

    console.set_up(config["debug"])
    settings = config["estimate"]
    if settings["json"] is not None:
        refuse_other_file(Path(settings["json"]))
    models = Models(open_model_and_data(config)[1])
    hardware, mfu = hardware_of(config, settings["hardware"]), settings["mfu"]
    found = estimate(config, models, hardware, mfu)
    changes = [] if found.fits else cheapest_changes(config, models, hardware, found.capacity, mfu)
    console.show(estimate_card(found, changes, mfu))
    if settings["json"] is not None:
        write(Path(settings["json"]), as_json(found, changes))
        print(f"estimate: {settings['json']}")


OURS = "terms_bytes"
"""A key by which an estimate is known."""


def refuse_other_file(path: Path) -> None:
    """Refuse to replace anything but an earlier estimate.

    Raises:
        InputError: The path holds something else.
    """
    from alignlab.errors import InputError

    if path.exists() and not (path.is_file() and OURS in path.read_text(encoding="utf-8", errors="replace")):
        why = "it exists and is not an estimate that alignlab wrote"
        raise InputError(f"estimate.json={path}", why, "Name another file")


def write(path: Path, values: dict[str, Any]) -> None:
    """Write an estimate.

    Raises:
        InputError: The file cannot be written.
    """
    from alignlab.errors import InputError
    from alignlab.system.disk import write_text

    try:
        write_text(path, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"estimate.json={path}", f"it cannot be written: {error}", "Name another file") from error
