"""What a kind of fault consists of: named cases, each a function that fails where the promise is broken."""

import shutil
import signal
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Skipped(Exception):
    """This machine cannot inject the fault; the text says why."""


class Case(NamedTuple):
    """One fault, or a chain of them.

    Args:
        name: What is done, short; with the seed it names the same fault again.
        check: Injects the fault in an empty folder of its own and raises where the promise is broken. Returns how
            many faults that were; None for one.
    """

    name: str
    check: Callable[[Path], int | None]


class Result(NamedTuple):
    """What came of a case.

    Args:
        kind: Kind of fault.
        name: Of the case.
        tried: Faults injected.
        verdict: ``passed``, ``failed`` or ``skipped``.
        why: What was broken, or why it was skipped.
        seconds: It took so long.
    """

    kind: str
    name: str
    tried: int
    verdict: str
    why: str
    seconds: float


def result_of(kind: str, case: Case, folder: Path) -> Result:
    """Run one case; nothing that it raises gets out but Ctrl-C. The folder of one that failed is left."""
    began, tried, verdict, why = time.monotonic(), 1, "passed", ""
    try:
        folder.mkdir(parents=True)
        tried = case.check(folder) or 1
    except Skipped as skipped:
        tried, verdict, why = 0, "skipped", str(skipped)
    except (Exception, SystemExit) as error:
        verdict, why = "failed", f"{type(error).__name__}: {error}"
    if verdict != "failed":
        shutil.rmtree(folder, ignore_errors=True)
    return Result(kind, case.name, tried, verdict, why, time.monotonic() - began)


@contextmanager
def time_limit(seconds: float):
    """Raise ``TimeoutError`` where a block of the main thread takes longer; code in C is waited for."""

    def ring(*_):
        raise TimeoutError(f"longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
