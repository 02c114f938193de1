"""End of processes: on signals, and together with the process that started them."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LIBC = ctypes.CDLL(None)  # loaded before any fork, after which a lock of the loader may stay held
PR_SET_PDEATHSIG = 1

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a run to stop."""


class Stopped(SystemExit):
    """Exit because of a signal, with code 128 + signal: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(128 + signum)


@contextmanager
def leaving_on_signals(while_importing: bool = False) -> Iterator[None]:
    """Let SIGTERM and SIGINT end this process at once, with their exit code and without a traceback.

    This has no effect outside the main thread, since Python handles signals only there.

    Args:
        while_importing: Exit without an exception and without cleaning up. An exception during the import of a C++
            module ends in SIGABRT.
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
    """Let only the parent end this child of ``multiprocessing``: ignore stop signals, which go to a whole group."""
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Kill this child of ``multiprocessing`` when its parent ends, even if the parent was killed."""
    signal_when_parent_ends(signal.SIGKILL)
    if multiprocessing.parent_process().pid != os.getppid():  # it ended before the call above
        os._exit(1)


def signal_when_parent_ends(signum: int) -> None:
    """Let Linux send this process a signal when the thread that started it ends; no effect on other systems."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signum)
