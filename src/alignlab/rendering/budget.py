"""Budget of one rendering of a template, in units that do not depend on the machine."""

import threading
import time
from typing import Any

from jinja2 import TemplateError
from jinja2.utils import Namespace

BASE_CHARACTERS, CHARACTERS_EACH = 20_000_000, 64
"""Characters that one rendering may produce in all its steps: a constant, and for each character of its input."""

ITERATION, CALL = 20, 80
"""Characters charged for an iteration of a loop, and for a call."""

MAX_SECONDS = 2.0
"""Processor time of one rendering."""


class TooMuch(TemplateError):
    """A template exceeds the budget of a rendering."""


class Budget(threading.local):
    """Remaining characters of this thread's current rendering."""

    left = 2**62
    given: Any = None
    deadline: float | None = None

    def begin(self, given: Any) -> None:
        """Start a rendering with its input; ``None`` allows the constant part alone."""
        self.left, self.given, self.deadline = BASE_CHARACTERS, given, None

    def spend(self, characters: int) -> None:
        """Charge characters to the budget.

        Raises:
            TooMuch: The budget or the processor time is used up.
        """
        before = self.left
        self.left = left = before - characters
        if left < 0 or left >> 16 != before >> 16:
            self.check()

    def check(self) -> None:
        """Check the remaining characters and the processor time.

        Raises:
            TooMuch: One of them is used up.
        """
        if self.left < 0 and self.given is not None:
            # Computed only here, since nearly all renderings stay below the constant part.
            given, self.given = self.given, None
            self.left += CHARACTERS_EACH * size_of(given, limit=2**62)
        if self.left < 0:
            raise TooMuch("it loops, calls or writes too much")
        if self.deadline is None:  # not in ``begin``: reading the clock takes as long as a small rendering
            self.deadline = time.thread_time() + MAX_SECONDS
        if time.thread_time() > self.deadline:
            raise TooMuch(f"it takes more than {MAX_SECONDS:g} seconds")


BUDGET = Budget()


def size_of(value: Any, limit: float = BASE_CHARACTERS) -> int:
    """Approximate number of characters of a value as text.

    Args:
        value: A value or a nesting of containers; a part that occurs several times counts each time.
        limit: Counting may stop above this number.
    """
    if isinstance(value, str):
        return len(value)
    waiting, total = [value], 0
    while waiting and total <= limit:
        part = waiting.pop()
        if isinstance(part, str | bytes):
            total += len(part)
        elif isinstance(part, dict):
            waiting += part.keys()
            waiting += part.values()
        elif isinstance(part, list | tuple | set):
            waiting += part
        elif isinstance(part, Namespace):
            waiting += part._Namespace__attrs.values()
        total += 32 + (part.bit_length() // 3 if isinstance(part, int) else 0)
    return total
