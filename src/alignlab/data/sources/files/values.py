"""Convert values of tables and of hub data sets to JSON types, so that rows of all sources have the same types.

| in the table | becomes |
|---|---|
| date, time, timestamp, duration | text: ISO 8601, ``2024-05-01T12:00:00+00:00``; a duration as Python writes it |
| decimal | a number where a float holds all its digits, else a text |
| bytes that are UTF-8 | a text |
| map, tuple, array | a list; for a map, a list of pairs |
| UUID, path | a text |
| other bytes, images, audio, any other object | the row is refused, naming the field |
"""

import datetime
from collections.abc import Mapping
from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np

from alignlab.data.sources.files.record import Record, faulty
from alignlab.data.sources.files.strict_json import MAX_DEPTH, TOO_DEEP

PLAIN = (str, int, float, bool, type(None))
MEND = "Leave the column out of the file, or save it as a text or a number; or type data.bad_rows=drop"


class Unreadable:
    """Placeholder for a value that cannot be read.

    Args:
        why: The reason.
    """

    def __init__(self, why: str):
        self.why = why


class NotJson(ValueError):
    """A value that JSON has no type for."""


def table_record(origin: str, row: Any) -> Record:
    """Convert a row of a table to a record; its ``fault`` is set if a value cannot be converted.

    Args:
        origin: Position of the row, for error messages.
        row: Values by name, as Arrow or ``datasets`` gives them.
    """
    try:
        return Record(origin, _json_value(row, "", 0), from_table=True)
    except NotJson as error:
        return faulty(origin, str(error), MEND)


def _json_value(value: Any, path: str, depth: int) -> Any:
    if type(value) in PLAIN and not isinstance(value, str):
        return value
    if depth > MAX_DEPTH:
        raise NotJson(TOO_DEEP)
    if isinstance(value, Mapping):
        inside = {str(key): (item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
        return {key: _json_value(item, field, depth + 1) for key, (item, field) in inside.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _json_value(value.tolist(), path, depth + 1)
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    return _scalar(value, path)


def _scalar(value: Any, path: str) -> Any:
    if isinstance(value, str | UUID | PurePath):
        return _text(str(value), path)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value), path)
    if isinstance(value, Unreadable):
        raise NotJson(f"field {path!r} cannot be read ({value.why})")
    raise NotJson(f"field {path!r} holds a {type(value).__name__}, which is neither a text nor a number")


def _text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise NotJson(f"field {path!r} holds half of a surrogate pair, which is not valid text") from error
    return value


def _number(value: Decimal) -> int | float | str:
    if value.is_finite() and value == int(value) and abs(value) < 2**63:
        return int(value)
    return float(value) if value.is_finite() and Decimal(str(float(value))) == value else str(value)


def _decoded(value: bytes, path: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"field {path!r} holds {len(value)} bytes that are not UTF-8 text") from error
