"""How the processes of a run end: on signals, and never later than the process that started them."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIBC = ctypes.CDLL(None)  # found before any fork, after which a lock of the loader may never be given back
PR_SET_PDEATHSIG = 1

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a run to stop."""


class Stopped(SystemExit):
    """The process leaves because of a signal, with exit code 128 + signal: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(128 + signum)


@contextmanager
def leaving_on_signals(while_importing: bool = False) -> Iterator[None]:
    """Let SIGTERM and SIGINT end this process at once, with their exit code and without a traceback.

    In another thread than the main one nothing changes, since Python gives signals to that one only.

    Args:
        while_importing: Nothing is there yet that must be cleaned up, and no exception may be raised: one that a C++
            module meets while it is imported ends in SIGABRT.
    """
    signals = STOPPING if threading.current_thread() is threading.main_thread() else ()
    handler = _exit if while_importing else _leave
    before = [signal.signal(signum, handler) for signum in signals]
    try:
        yield
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)


def _leave(signum: int, frame: object) -> None:
    raise Stopped(signum)


def _exit(signum: int, frame: object) -> None:
    os._exit(128 + signum)


def be_worker() -> None:
    """Make this child of ``multiprocessing`` one that its parent ends: it ignores signals that go to a whole group."""
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Kill this child of ``multiprocessing`` when its parent is gone, even if that was killed."""
    signal_when_parent_ends(signal.SIGKILL)
    if multiprocessing.parent_process().pid != os.getppid():  # it was gone before we asked
        os._exit(1)


def signal_when_parent_ends(signum: int) -> None:
    """Have Linux send this process a signal when the thread that started it ends; for a new process of any kind."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signum)
