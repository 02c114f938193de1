"""Estimate memory, time and communication of a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from alignlab.cli.composition.command import command


def main(words: Sequence[str]) -> int:
    """Print what a training would need, without reading weights; ``estimate.json=FILE`` also writes it.

    Args:
        words: Command line after the verb.

    Returns:
        Exit code.
    """
    return command("estimate", words, check, show)


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check the config as for training on the named hardware; return it resolved."""
    from alignlab.cli.composition.hidden import hide_config
    from alignlab.config import compat, schema
    from alignlab.config.schema.root import ESTIMATE
    from alignlab.estimate.cards import parse_hardware

    hide_config(cfg)
    config = schema.check(cfg, ESTIMATE)
    if (word := config["estimate"]["hardware"]) is not None:
        config |= {"trainer": config["trainer"] | parse_hardware(word).trainer}
    compat.check(config)
    return config


def show(config: dict[str, Any]) -> Any:
    """Print the estimate, and write it if requested."""
    from alignlab.assemble import open_model_and_data
    from alignlab.estimate.build import Models
    from alignlab.estimate.changes import cheapest_changes
    from alignlab.estimate.estimate import estimate, hardware_of
    from alignlab.estimate.table import as_json, estimate_card
    from alignlab.run_folder import console
    from alignlab.system.disk import write_text

    console.set_up(config["debug"])
    settings = config["estimate"]
    _, data = open_model_and_data(config)
    hardware, mfu = hardware_of(config, settings["hardware"]), settings["mfu"]
    models = Models(data)
    found = estimate(config, models, hardware, mfu)
    changes = [] if found.fits else cheapest_changes(config, models, hardware, found.capacity, mfu)
    console.show(estimate_card(found, changes, mfu))
    if settings["json"] is not None:
        write_text(Path(settings["json"]), json.dumps(as_json(found, changes), indent=2) + "\n")
        print(f"estimate: {settings['json']}")
