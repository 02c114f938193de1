"""What one rendering of a template may take, in units that do not depend on the machine."""

import threading
import time
from typing import Any

from jinja2 import TemplateError
from jinja2.utils import Namespace

BASE_CHARACTERS, CHARACTERS_EACH = 20_000_000, 64
"""Characters that one rendering may make on the way, in all and for each character of its messages and tools."""

TURN, CALL = 20, 80
"""Characters that a turn of a loop, and a call, count for."""

MAX_SECONDS = 2.0
"""Of processor time of one rendering."""


class TooMuch(TemplateError):
    """A template asks for more than a rendering may take."""


class Budget(threading.local):
    """What is left to the rendering that this thread is at, in characters."""

    left = 2**62
    given: Any = None
    deadline: float | None = None

    def begin(self, given: Any) -> None:
        """Start a rendering of what is given."""
        self.left, self.given, self.deadline = BASE_CHARACTERS, given, None

    def spend(self, characters: int) -> None:
        """Pay."""
        before = self.left
        self.left = left = before - characters
        if left < 0 or left >> 16 != before >> 16:
            self.look()

    def look(self) -> None:
        """Stop what is too much, or has taken too long."""
        if self.left < 0 and self.given is not None:
            # Asked for only here, since nearly all renderings stay below the first limit.
            given, self.given = self.given, None
            self.left += CHARACTERS_EACH * size_of(given, limit=2**62)
        if self.left < 0:
            raise TooMuch("it loops, calls or writes too much")
        if self.deadline is None:  # not in ``begin``: asking the clock costs as much as a small rendering
            self.deadline = time.thread_time() + MAX_SECONDS
        if time.thread_time() > self.deadline:
            raise TooMuch(f"it takes more than {MAX_SECONDS:g} seconds")


BUDGET = Budget()


def size_of(value: Any, limit: float = BASE_CHARACTERS) -> int:
    """Characters that a value has as text, about.

    Args:
        value: What stands in it in several places counts in each.
        limit: Where counting may stop; what is larger is too large.
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
