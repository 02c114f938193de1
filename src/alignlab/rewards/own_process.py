"""Rewards that run in a process of their own, where they can be stopped, and limits of time within it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS_PER_TEXT = 2.0
"""What a single text may take where each is looked at by itself."""


class Apart:
    """A reward of ours that is run in a process of its own; it is sent there pickled."""

    def prepare(self) -> None:
        """What takes time and can be refused: called there once, before any completion."""


class TimeUp(BaseException):
    """The time of a text is over; no ``Exception``, which libraries catch."""


@contextmanager
def time_limit(seconds: float = SECONDS_PER_TEXT) -> Iterator[None]:
    """Interrupt what takes longer, a regular expression too, with `TimeUp`.

    Signals reach the main thread only, where a reward of its own process runs; elsewhere there is no limit.

    Args:
        seconds: The limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ring(signum: int, frame: FrameType | None) -> None:
    raise TimeUp
