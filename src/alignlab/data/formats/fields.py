"""Fields of a record. A format pops the fields that it reads; the others become the columns of the row."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from alignlab.data.sources.files.strict_json import UNREADABLE, complaint, decode

JSON_TYPES = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}

TOOL_FIELDS = ("tools", "tool_calls", "function_call")
"""Fields of a record or of a message that hold tool schemas and tool calls."""


class BadRow(Exception):
    """A record that cannot be converted to a row.

    Args:
        why: What is wrong, with the name of the field.
        instead: What to type instead; None if the record has to be corrected.
    """

    def __init__(self, why: str, instead: str | None = None):
        self.why, self.instead = why, instead
        super().__init__(why)


def type_name(value: Any) -> str:
    """Name the JSON type of a value: ``a number``, ``a list``, ``null``."""
    return "null" if value is None else JSON_TYPES.get(type(value), f"a {type(value).__name__}")


def is_finite(number: float) -> bool:
    """Whether a number is finite as a float, which an integer beyond the largest float is not."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def filled(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Names of the fields that the record has and that are not null.

    Tables give every row every column, with null where a row has no value, so null counts as absent.
    """
    return [name for name in names if record.get(name) is not None]


def filled_text(value: Any, field: str) -> str:
    """Return a value that must be a text with more than blanks.

    Raises:
        BadRow: It is not a text, or it is blank.
    """
    if not isinstance(value, str):
        raise BadRow(f"field {field!r} is {type_name(value)} where a text is needed")
    if not value.strip():
        raise BadRow(f"field {field!r} is empty")
    return value


def pop(record: dict[str, Any], field: str) -> Any:
    """Pop a required field.

    Raises:
        BadRow: The field is missing.
    """
    if field not in record:
        raise BadRow(f"field {field!r} is missing", f"Add it, or name its column: data.columns={{{field}: COLUMN}}")
    return record.pop(field)


def pop_optional_text(record: dict[str, Any], field: str) -> str | None:
    """Pop an optional text; absent, null and blank all give None."""
    value = record.pop(field, None)
    blank = value is None or (isinstance(value, str) and not value.strip())
    return None if blank else filled_text(value, field)


def from_json_text(value: Any, field: str) -> Any:
    """Parse a text that holds a JSON list or object; anything else passes unchanged.

    Raises:
        BadRow: It looks like JSON and is not valid.
    """
    if not (isinstance(value, str) and value.lstrip().startswith(("[", "{"))):
        return value
    text = value.strip()
    try:
        found = decode(text)
        if found.end < len(text):
            raise json.JSONDecodeError("More follows after the value", text, found.end)
    except UNREADABLE as error:
        raise BadRow(f"field {field!r} is not valid JSON ({complaint(error)})") from error
    if found.problem:
        raise BadRow(f"field {field!r} is not valid JSON ({found.problem})")
    return found.value


def without_filled_nulls(value: Any, inside: bool = False) -> Any:
    """Remove the nulls that a table fills into tool schemas and tool calls; all other values stay.

    A column of a table has one type, so the arguments of a call get a null for each argument of every other call. JSON
    texts are not changed: a null in them was written by somebody.

    Args:
        value: Fields of a record that comes from a table, or a part of them.
        inside: Whether the value is inside a schema or a call.
    """
    if isinstance(value, list):
        return [without_filled_nulls(item, inside) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_filled_nulls(item, inside or key in TOOL_FIELDS)
        for key, item in value.items()
        if not (inside and item is None)
    }


def pop_tools(record: dict[str, Any]) -> tuple[Any, ...] | None:
    """Pop ``tools`` (a list or its JSON text), in the form that chat templates expect.

    Raises:
        BadRow: It is not a list of objects.
    """
    tools = from_json_text(record.pop("tools", None), "tools")
    if tools is None or tools == "" or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f"field 'tools' is {type_name(tools)} where a list of objects is needed")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)
