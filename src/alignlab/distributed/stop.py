"""Stopping while a run trains: the signal is remembered, and the run leaves where nothing is lost."""

import signal
import threading

from alignlab.system.processes import Stopped


class StopSignals:
    """SIGTERM and SIGINT during a fit.

    While ``waiting`` is set the first one is only remembered, for a caller that leaves at the next safe point. So is
    every further SIGTERM, since a queue may send it to the parent and to the ranks, which then get it twice. A further
    Ctrl-C raises :class:`Stopped` at once, as any signal does while ``waiting`` is not set.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.waiting = False

    def install(self) -> None:
        """Let signals wait. Lightning puts the handlers from before the fit back when the fit ends."""
        self.waiting = True
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: object) -> None:
        again, self.received = self.received is not None, self.received or signum
        if not self.waiting or (again and signum == signal.SIGINT):
            raise Stopped(signum)
