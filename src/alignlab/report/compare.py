"""Two runs side by side: settings, results and environment that differ."""

from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from alignlab.report.page import number
from alignlab.report.records import Record, flat
from alignlab.report.settings import MISSING, cell, settings_of

FACTS = ("status", "steps", "epochs", "tokens", "supervised_tokens", "wall_seconds", "tokens_per_second")
FACTS = (*FACTS, "peak_memory_mib")
"""Entries of ``summary.json`` that belong to the results."""

Row = tuple[str, ...]


def comparison(first: Record, second: Record) -> dict[str, list[Row]]:
    """What differs between two runs.

    Args:
        first: A run.
        second: Another run.

    Returns:
        Rows ``(name, value, value)`` of settings, and of environment and data; and ``(name, value, value, difference)``
        of results.
    """
    settings = [{key: cell(value) for key, value in settings_of(record).items()} for record in (first, second)]
    environments = [_environment(record) for record in (first, second)]
    return {
        "settings": list(_differing(*settings)),
        "results": list(_results(first, second)),
        "environment": list(_differing(*environments)),
    }


def _environment(record: Record) -> dict[str, str]:
    """What surrounded a run, and the hashes of its data."""
    entries = {**record.environment, "data": record.summary.get("data", {})}
    return {key: cell(value) for key, value in flat(entries).items()}


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Row]:
    for key in dict.fromkeys([*first, *second]):
        values = tuple(cell(one.get(key, MISSING)) for one in (first, second))
        if values[0] != values[1]:
            yield (key, *values)


def _results(first: Record, second: Record) -> Iterator[Row]:
    for name in FACTS:
        values = [record.summary.get(name) for record in (first, second)]
        if values[0] != values[1]:
            yield (name, *_numbers(*values))
    for when, metrics in (("", [first.metrics, second.metrics]), (" before", [first.before, second.before])):
        for name in dict.fromkeys([*metrics[0], *metrics[1]]):
            values = [one.get(name) for one in metrics]
            if values[0] != values[1] and not name.startswith("progress/"):
                yield (name + when, *_numbers(*values))


def _numbers(first: object, second: object) -> Row:
    are_numbers = [isinstance(value, int | float) for value in (first, second)]
    texts = [number(value) if known else cell(value) for value, known in zip((first, second), are_numbers, strict=True)]
    return (*texts, number(second - first) if all(are_numbers) else "")


def print_comparison(first: Record, second: Record) -> None:
    """Print what differs between two runs.

    Args:
        first: A run.
        second: Another run.
    """
    found = comparison(first, second)
    names = [Text(f"A  {first.path}"), Text(f"B  {second.path}")]
    tables = [_table(title, rows) if rows else Text(f"{title}: equal") for title, rows in found.items()]
    Console().print(Group(*names, *(part for table in tables for part in ("", table))))


def _table(title: str, rows: Iterable[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in ("A", "B"):
        table.add_column(name, overflow="fold", justify="right" if title == "results" else "left")
    if title == "results":
        table.add_column("difference", justify="right")
    for row in rows:
        table.add_row(*row)
    return table
