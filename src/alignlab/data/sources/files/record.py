"""A record: one value of a file with the place where it stands, before any format looks at it."""

from typing import Any, NamedTuple

from alignlab.errors import InputError

MEND = "Mend it, or type data.bad_rows=drop to skip and count such rows"


SAYS = {"content", "value", "tool_calls", "function_call", "reasoning_content"}
"""Keys of a message besides its role."""


class Record(NamedTuple):
    """One value of a file.

    Args:
        origin: ``name.jsonl:12``, the line counted from 1; where several rows share a line or an array holds them,
            ``name.json:12[3]``, the row counted from 0; ``name.parquet[3]`` where there are no lines.
        value: The JSON value (from tables and text files an object); None where ``fault`` is set.
        fault: Why the value cannot be had, where only this record is at fault and the rest of the file can be read.
        repeated: Keys that stand more than once in one object; the value holds their last occurrence.
    """

    origin: str
    value: Any
    fault: InputError | None = None
    repeated: tuple[str, ...] = ()


def faulty(origin: str, why: str, instead: str = MEND) -> Record:
    """A record that could not be read."""
    return Record(origin, None, InputError(origin, why, instead))


def is_dialogue(value: Any) -> bool:
    """Whether a value is a bare list of chat messages, which is one row and not a list of rows."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    """Whether a value has the keys of a message; ``role`` or ``from`` alone may be columns of a table."""
    keys = value.keys() if isinstance(value, dict) else set()
    return ("role" in keys and bool(SAYS & keys)) or {"from", "value"} <= keys
