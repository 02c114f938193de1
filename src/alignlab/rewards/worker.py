"""The process in which a reward runs by itself: ``python -m alignlab.rewards.worker CHANNEL LIFELINE``.

It is sent ``sys.path`` and the pickled reward once, then completions again and again, and answers in JSON: nothing that
a reward returns is unpickled by the run. The lifeline is a pipe of which the run holds the other end and into which it
writes nothing: once the run is gone, however it went, Linux kills this process with all that it started, whatever it is
doing.
"""

import fcntl
import json
import os
import pickle
import select
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from alignlab.errors import InputError
from alignlab.rewards.answers import ask
from alignlab.rewards.own_process import Apart

F_SETSIG = 10
"""Of Linux: which signal tells that something happened to a descriptor; ``fcntl`` has no name for it."""


def main() -> None:
    """Serve until the run ends."""
    channel, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    end_with(lifeline)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _wait_for_the_run)
    try:
        serve(channel)
    except (EOFError, OSError):  # the run has closed its end
        return


def _wait_for_the_run(signum: int, frame: object) -> None:
    """Do nothing: the run may still finish its step. As a function, and not inherited as ``SIG_IGN`` would be."""


def end_with(lifeline: int) -> None:
    """Have this process and those that it starts killed when the other end of a pipe is closed."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # closed before we asked
        os._exit(1)


def serve(channel: Connection) -> None:
    """Make the reward ready, say so, and answer."""
    sys.path[:], pickled = channel.recv()
    try:
        reward = pickle.loads(pickled)
        if isinstance(reward, Apart):
            reward.prepare()
    except InputError as error:
        return _send(channel, {"refused": [error.asked, error.why, error.instead]})
    except BaseException as error:  # code of others: importing it may raise anything
        return _send(channel, {"failed": "".join(traceback.format_exception_only(error)).strip()})
    _send(channel, {})
    while True:
        answer = ask(reward, *channel.recv())
        _send(channel, {"values": answer.values, "failure": answer.failure, "told": answer.told})


def _send(channel: Connection, message: dict[str, Any]) -> None:
    channel.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main()
