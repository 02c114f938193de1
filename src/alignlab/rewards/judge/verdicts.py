"""Reading what a judge replies. A verdict stands in one fixed form at the end of the reply; nothing else is read."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
MAX_OBJECT_CHARACTERS, MAX_BRACES = 8192, 64
"""Limits of the search for an object at the end of a reply, so that no reply takes long to read."""

SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class Failure:
    """Why there is no verdict.

    Args:
        kind: ``timed_out``, ``no_connection``, ``busy`` (status 429), ``server_error`` (5xx), ``refused`` (any other
            status), ``no_text`` (the response holds no reply), ``unreadable`` (the reply holds no verdict),
            ``out_of_scale``, or ``out_of_time`` (the time for all questions together was over).
        message: Description.
    """

    kind: str
    message: str


def read_score(reply: str, lowest: float, highest: float) -> float | Failure:
    """Read a score: ``{"score": 7}`` at the end of the reply, or a reply that is a number.

    Args:
        reply: Text of the judge.
        lowest: Lowest valid score.
        highest: Highest valid score.
    """
    score = _value(reply, "score")
    if score is None:
        return _unreadable(reply, '{"score": NUMBER}')
    if not lowest <= score <= highest:  # also for NaN
        return Failure("out_of_scale", f"it gave {str(score)[:20]}, and the scale is {lowest:g} to {highest:g}")
    return float(score)


def read_better(reply: str) -> int | Failure:
    """Read which of two completions is better: ``{"better": 1}`` at the end of the reply, or a reply that is a number.

    Args:
        reply: Text of the judge.

    Returns:
        1 or 2 for a position, 0 for a tie.
    """
    better = _value(reply, "better")
    return int(better) if better in (0, 1, 2) else _unreadable(reply, '{"better": 1}, 2 or 0')


def summary(failures: Iterable[Failure], total: int) -> str:
    """Describe failures in one line: their number by kind, and the first one.

    Args:
        failures: The failures, at least one.
        total: Number of questions.
    """
    failures = list(failures)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in failures).most_common())
    return f"{len(failures)} of {total} got no verdict ({kinds}); first: {failures[0].message}"


def _unreadable(reply: str, form: str) -> Failure:
    end = " ".join(reply.split())[-SHOWN_CHARACTERS:]
    return Failure("unreadable", f"its reply does not end with {form}, but with: {end!r}")


def _value(reply: str, name: str) -> int | float | None:
    """The number of that name in the last object, or the number that is the whole reply."""
    reply = reply.strip()
    if NUMBER.fullmatch(reply):
        return float(reply)
    value = _last_object(reply).get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _last_object(reply: str) -> dict[str, Any]:
    """The JSON object with which a text ends, perhaps in a code fence; empty if there is none."""
    text = reply.removesuffix("```").rstrip()[-MAX_OBJECT_CHARACTERS:]
    start = len(text)
    for _ in range(MAX_BRACES):
        start = text.rfind("{", 0, start)
        if start < 0:
            break
        try:
            return json.loads(text[start:])  # fails if anything follows the object
        except (ValueError, RecursionError):
            continue
    return {}
