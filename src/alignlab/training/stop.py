"""Stopping on SIGTERM or Ctrl-C: the signal is remembered, and the run leaves at the next safe door."""

import signal
import threading


class Stopped(SystemExit):
    """A run that ended on a signal after saving a checkpoint; exits with 128 + signal (SIGTERM 143, Ctrl-C 130)."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(128 + signum)


class StopSignals:
    """Remembers the first SIGTERM or SIGINT. A second Ctrl-C interrupts at once, without a checkpoint."""

    def __init__(self) -> None:
        self.received: int | None = None

    def install(self) -> None:
        """Take the signals over. Lightning puts the handlers from before the fit back when the fit ends."""
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: object) -> None:
        if self.received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signum
