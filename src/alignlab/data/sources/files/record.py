"""A record: one value of a file with its position, before it is converted to a row."""

from typing import Any, NamedTuple

from alignlab.errors import InputError

MEND = "Correct it, or type data.bad_rows=drop to skip and count such rows"

CONTENT_KEYS = {"content", "value", "tool_calls", "function_call", "reasoning_content"}
"""Keys that hold the content of a message."""


class Record(NamedTuple):
    """One value of a file.

    Args:
        origin: ``name.jsonl:12`` with the line counted from 1; ``name.json:12[3]`` with the row counted from 0, if
            several rows share a line or are in an array; ``name.parquet[3]`` if there are no lines.
        value: The JSON value (an object, if it comes from a table or a text file); None if ``fault`` is set.
        fault: Why the value cannot be read, if the rest of the file can.
        repeated: Keys that appear more than once in one object; the value holds their last occurrence.
        from_table: Whether the value comes from a table, which gives each object the keys of all objects in its column:
            a null may then stand for a key that the object never had.
    """

    origin: str
    value: Any
    fault: InputError | None = None
    repeated: tuple[str, ...] = ()
    from_table: bool = False


def faulty(origin: str, why: str, instead: str = MEND) -> Record:
    """Make a record that could not be read."""
    return Record(origin, None, InputError(origin, why, instead))


def is_dialogue(value: Any) -> bool:
    """Whether a value is a list of chat messages, which is one row and not a list of rows."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    """Whether a value has the keys of a message; ``role`` or ``from`` alone may be a column of a table."""
    keys = value.keys() if isinstance(value, dict) else set()
    return ("role" in keys and bool(CONTENT_KEYS & keys)) or {"from", "value"} <= keys
