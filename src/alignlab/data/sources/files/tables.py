"""Tables: CSV, whose cells are texts, and Parquet, whose cells have types."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from alignlab.data.sources.files.decode import how_to_convert, undecoded
from alignlab.data.sources.files.record import Record, faulty
from alignlab.data.sources.files.values import Unreadable, table_record
from alignlab.errors import InputError
from alignlab.system.paths import reason

UNREADABLE = (pyarrow.ArrowException, OSError, ValueError, LookupError, ArithmeticError, TypeError)
"""Errors that Arrow raises for files and values; a time zone that does not exist is a ``LookupError``."""

# The csv module refuses cells above 131,072 characters by default; a document may be longer.
MAX_CELL_CHARACTERS = 2**31 - 1


def csv_records(name: str, stream: TextIO, delimiter: str = ",") -> Iterator[Record]:
    """Read a CSV file with a header line; quoted cells may span lines.

    Args:
        name: Name of the file, for origins.
        stream: Its text.
        delimiter: What separates cells: a comma, or a tab in TSV files.

    Raises:
        InputError: The file is empty, its header has empty or repeated names, or its quoting is broken.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    cells = csv.reader(stream, strict=True, delimiter=delimiter)
    try:
        header = next(cells, [])
        if len(set(header)) < len(header) or not all(header):
            raise InputError(f"{name}:1", f"the header {header} has empty or repeated names", "Name each column once")
        line = cells.line_num + 1
        for row in cells:
            if row:
                yield _csv_record(name, line, header, row)
            line = cells.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}:{cells.line_num}", f"not CSV: {error}", "Correct the quoting of the file") from error
    if not header:
        raise InputError(name, "the file is empty", "Point data.path at a file with rows")


def _csv_record(name: str, line: int, header: list[str], row: list[str]) -> Record:
    origin = f"{name}:{line}"
    if problem := undecoded("".join(row)):
        return faulty(origin, problem, how_to_convert(name))
    if len(row) != len(header):
        return faulty(origin, f"{len(row)} cells where the header names {len(header)}")
    return Record(origin, dict(zip(header, row, strict=True)))


def parquet_records(name: str, path: Path) -> Iterator[Record]:
    """Read a Parquet file, one batch of rows at a time.

    Raises:
        InputError: The file is not Parquet, or it is damaged.
    """
    index = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in _rows(batch):
                yield table_record(f"{name}[{index}]", row)
                index += 1
    except UNREADABLE as error:
        what = f"it is damaged after {index} rows" if index else "not a Parquet file"
        raise InputError(name, f"{what} ({reason(error)})", "Copy or download the file again") from error


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows of a batch; a value that Python cannot hold (year 20000, bytes that are not UTF-8) is an ``Unreadable``."""
    try:
        rows = batch.to_pylist()
    except UNREADABLE:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        rows = ({name: _value(values, index) for name, values in columns.items()} for index in range(batch.num_rows))
    yield from rows


def _value(values: pyarrow.Array, index: int) -> Any:
    try:
        return values[index].as_py()
    except UNREADABLE as error:
        return Unreadable(reason(error))
