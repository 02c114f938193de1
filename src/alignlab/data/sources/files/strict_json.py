"""JSON as rows may hold it, strictly: what is no JSON value, no text or no number of a usual size is told by its field.

``NaN``, ``Infinity``, numbers too large for a float, halves of surrogate pairs, and nesting beyond ``MAX_DEPTH`` are
refused. So whatever is read here can be written again, compared, sent to another process and rendered.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

MAX_DEPTH = 64
"""Lists and objects inside each other. Python gives up at a depth that differs between its own parts."""

UNREADABLE = (ValueError, RecursionError)
"""Bad syntax, an integer of thousands of digits; nested far too deeply."""

TOO_DEEP = "the value is nested too deeply"


class Decoded(NamedTuple):
    """A value that begins somewhere in a text.

    Args:
        value: What stands there.
        end: Where the text goes on.
        repeated: Keys that stand more than once in one object; the value holds their last occurrence.
        problem: Why the value cannot be used, naming the field; None where it can.
    """

    value: Any
    end: int
    repeated: tuple[str, ...]
    problem: str | None


def decode(text: str, at: int = 0) -> Decoded:
    """Read the value that begins at a position, which is no blank.

    Raises:
        ValueError: It is no JSON.
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
    # Looking through every value would double the reading time.
    suspect = infinite or text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0
    return Decoded(value, end, tuple(repeated), unusable(value) if suspect else None)


def is_too_deep(value: Any) -> bool:
    """Whether more than ``MAX_DEPTH`` lists and objects stand inside each other; asked without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [item for one in level for item in _inside(one)]
        if not level:
            return False
    return True


def unusable(value: Any, path: str = "") -> str | None:
    """Name the first field that holds what is no JSON value or no text; None where there is none."""
    if isinstance(value, dict):
        inside = itertools.chain(((key, key) for key in value), value.items())
        return next(filter(None, (unusable(item, f"{path}.{key}".lstrip(".")) for key, item in inside)), None)
    if isinstance(value, list):
        return next(filter(None, (unusable(item, f"{path}[{i}]") for i, item in enumerate(value))), None)
    place = f"field {path!r}" if path else "the value"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} is {value}, or a number too large for a float, which JSON does not have"
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        return f"{place} holds half of a surrogate pair (such as \\ud83d alone), which is no text"
    return None


def complaint(error: Exception) -> str:
    """An error of ``UNREADABLE`` in words."""
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if not isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    if error.doc[error.pos : error.pos + 1] == "\0":
        return f"NUL bytes in column {error.colno}: the file is damaged, or UTF-16 without a byte-order mark"
    return f"not JSON: {error.msg} in column {error.colno}"


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
