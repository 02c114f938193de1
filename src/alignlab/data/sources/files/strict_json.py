"""Strict JSON: refuse values that are not valid JSON or text, and name their field.

``NaN``, ``Infinity``, numbers too large for a float, halves of surrogate pairs, and nesting beyond ``MAX_DEPTH`` are
refused. Every value that is accepted can therefore be written, compared, sent to another process and rendered.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

MAX_DEPTH = 64
"""Maximum nesting of lists and objects. Python's own limits differ between its functions."""

UNREADABLE = (ValueError, RecursionError)
"""``ValueError``: bad syntax, or an integer of thousands of digits. ``RecursionError``: nested far too deeply."""

TOO_DEEP = "the value is nested too deeply"


class Decoded(NamedTuple):
    """A value decoded from a text.

    Args:
        value: The value.
        end: Position after the value.
        repeated: Keys that appear more than once in one object; the value holds their last occurrence.
        problem: Why the value cannot be used, with the name of the field; None if it can.
    """

    value: Any
    end: int
    repeated: tuple[str, ...]
    problem: str | None


def decode(text: str, at: int = 0) -> Decoded:
    """Decode the value that begins at a position, where no blank may be.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested far too deeply.
    """
    repeated, infinite = [], []

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.extend(key for key in value if keys.count(key) > 1)
        return value

    def to_float(digits: str) -> float:
        number = float(digits)
        infinite.extend([] if math.isfinite(number) else [digits])
        return number

    def to_int(digits: str) -> int | float:
        return int(digits) if len(digits) <= 300 else to_float(digits)

    decoder = json.JSONDecoder(
        object_pairs_hook=to_object, parse_float=to_float, parse_int=to_int, parse_constant=to_float
    )
    value, end = decoder.raw_decode(text, at)
    if text.count("[", at, end) + text.count("{", at, end) > MAX_DEPTH and is_too_deep(value):
        return Decoded(value, end, (), TOO_DEEP)
    # Checking every value would double the reading time.
    suspect = infinite or text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0
    return Decoded(value, end, tuple(repeated), unusable(value) if suspect else None)


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects are nested deeper than ``MAX_DEPTH``; computed without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for one in level for item in _inside(one)]
        if not level:
            return False
    return True


def unusable(value: Any, path: str = "") -> str | None:
    """Describe the first field that holds a value that is not valid JSON or text; None if there is none."""
    if isinstance(value, dict):
        inside = itertools.chain(((key, key) for key in value), value.items())
        return next(filter(None, (unusable(item, f"{path}.{key}".lstrip(".")) for key, item in inside)), None)
    if isinstance(value, list):
        return next(filter(None, (unusable(item, f"{path}[{i}]") for i, item in enumerate(value))), None)
    field = f"field {path!r}" if path else "the value"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{field} is {value}, or a number too large for a float, which JSON does not have"
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        return f"{field} holds half of a surrogate pair (such as \\ud83d alone), which is not valid text"
    return None


def complaint(error: Exception) -> str:
    """Describe an error of ``UNREADABLE``."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    if error.doc[error.pos : error.pos + 1] == "\0":
        return f"NUL bytes in column {error.colno}: the file is damaged, or UTF-16 without a byte-order mark"
    return f"not JSON: {error.msg} in column {error.colno}"


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
