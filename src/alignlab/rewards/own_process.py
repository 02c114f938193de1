"""Rewards that run in a separate process, where they can be stopped, and time limits within it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS_PER_TEXT = 2.0
"""Time limit of a single text, for rewards that process texts one by one."""


class OwnProcessReward:
    """Base of our rewards that run in a separate process, to which they are sent pickled."""

    def prepare(self) -> None:
        """Prepare for scoring: called once in that process. It may take long, or raise an ``InputError``."""

    @property
    def needs(self) -> set[str]:
        """Names of the columns that it cannot do without, known once it is prepared."""
        return set()


class TimeUp(BaseException):
    """The time limit of a text has passed. Not an ``Exception``, since libraries catch those."""


@contextmanager
def time_limit(seconds: float = SECONDS_PER_TEXT) -> Iterator[None]:
    """Raise ``TimeUp`` in a block that takes longer, even in a regular expression.

    Signals reach the main thread only, in which a reward runs in its own process; in other threads there is no limit.

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
