"""Show what differs between two runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import paths_as_key
from alignlab.config.schema import check_keys
from alignlab.config.schema.root import COMPARE


def main(words: Sequence[str]) -> int:
    """Print what differs between two runs.

    Args:
        words: Command line after the verb: two run folders.

    Returns:
        Exit code.
    """
    return command("compare", paths_as_key(words, "from"), partial(check_keys, sections=COMPARE), show)


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
