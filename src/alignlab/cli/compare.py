"""Show what differs between two runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import paths_as_key


def main(words: Sequence[str]) -> int:
    """Print what differs between two runs.

    Args:
        words: Command line after the verb: two run folders.

    Returns:
        Exit code.
    """
    return command("compare", paths_as_key(words, "from"), check, show)


def check(cfg: DictConfig) -> dict[str, Any]:
    """Check the config; return it resolved."""
    from alignlab.config.schema import check_keys
    from alignlab.config.schema.root import COMPARE

    return check_keys(cfg, COMPARE)


def show(config: dict[str, Any]) -> None:
    """Print the comparison."""
    from alignlab.errors import InputError
    from alignlab.report.compare import print_comparison
    from alignlab.report.records import read_records

    records = read_records([Path(path) for path in config["from"]])
    if len(records) != 2:
        why = f"these folders hold {len(records)}, and two runs are compared"
        raise InputError(f"from=[{','.join(config['from'])}]", why, "Name two run folders, or type alignlab report")
    print_comparison(*records)
