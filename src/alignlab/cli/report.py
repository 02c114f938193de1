"""Show several runs on one page: what differs, what came out."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import paths_as_key
from alignlab.config.schema import check_keys
from alignlab.config.schema.root import REPORT


def main(words: Sequence[str]) -> int:
    """Write the report of the runs in some folders, and print its table.

    Args:
        words: Command line after the verb: folders, and ``key=value``.

    Returns:
        Exit code.
    """
    return command("report", paths_as_key(words, "from"), partial(check_keys, sections=REPORT), write)


def write(config: dict[str, Any]) -> None:
    """Write the report, and print the ranked settings."""
    from alignlab.report.records import read_records
    from alignlab.report.table import print_ranking
    from alignlab.report.write import PAGE, write_report

    records = read_records([Path(path) for path in config["from"]])
    results = write_report(records, Path(config["to"]), config["metric"])
    print_ranking(results.ranking, results.metric)
    print(f"report: {Path(config['to']) / PAGE}")
