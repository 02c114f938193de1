"""The rows of an evaluation."""

from collections.abc import Iterator
from itertools import islice

from alignlab.assemble import Config
from alignlab.data.formats.conversions import prepend
from alignlab.data.sources.split import Source, split_rows
from alignlab.errors import InputError
from alignlab.types.rows import Row

HELD_OUT = "held_out"
"""Value of ``rows``: those that the run did not train on. ``all``: the validation part of the data, or all of it."""

Set = str | None
"""Name of a set of rows; None if there is one set without a name."""


def read_sets(config: Config, source: Source) -> dict[Set, list[Row]]:
    """The rows to measure on, at most ``num_rows`` of each set.

    Raises:
        InputError: There are none.
    """
    names = getattr(source, "validation_sets", ())
    parts = {name: f"validation/{name}" for name in names} or {None: "validation"}
    sets = {name: list(islice(_rows(config, source, part), config["num_rows"])) for name, part in parts.items()}
    if not all(sets.values()):
        asked, why = f"data.path={config['data'].get('path')}", "it has no row to measure on"
        raise InputError(asked, why, "Name other rows: data=jsonl data.path=FILE")
    return sets


def _rows(config: Config, source: Source, part: str) -> Iterator[Row]:
    data = config["data"]
    held_out = data["validation_size"] if config["rows"] == HELD_OUT else None
    if held_out is None and part == "validation" and next(source.rows("validation"), None) is None:
        part = "train"
    for row in split_rows(source, part, held_out):
        yield prepend(row, data["prepend"]) if data["prepend"] else row
