"""Stop signals during training: the signal is recorded, and the run stops at the next safe point."""

import signal
import threading

from alignlab.system.processes import Stopped


class StopSignals:
    """Handle SIGTERM and SIGINT during a fit.

    While ``waiting`` is set, the first signal is only recorded in ``received``, for a caller that stops at the next
    safe point. Further SIGTERMs are ignored, since a queue may send the signal to the parent and to the ranks, which
    then get it twice. A further Ctrl-C raises ``Stopped`` at once, as does any signal while ``waiting`` is not set.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.waiting = False

    def install(self) -> None:
        """Set ``waiting`` and the handlers. Lightning restores the handlers from before the fit at its end."""
        self.waiting = True
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, self._handle)

    def _handle(self, signum: int, frame: object) -> None:
        again, self.received = self.received is not None, self.received or signum
        if not self.waiting or (again and signum == signal.SIGINT):
            raise Stopped(signum)
