"""The process of a reward: ``python -m alignlab.rewards.worker CHANNEL LIFELINE``.

It receives ``sys.path`` and the pickled reward once, then completions repeatedly, and answers in JSON, so the run never
unpickles what a reward returns. The lifeline is a pipe whose other end the run holds open without writing to it. When
the run ends, for whatever reason, Linux kills this process and every process that it started.
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
from alignlab.rewards.own_process import OwnProcessReward

F_SETSIG = 10
"""Linux command that sets the signal for events on a descriptor; ``fcntl`` has no name for it."""


def main() -> None:
    """Answer calls until the run ends."""
    channel, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    end_with(lifeline)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _wait_for_the_run)
    try:
        serve(channel)
    except (EOFError, OSError):  # the run has closed its end
        return


def _wait_for_the_run(signum: int, frame: object) -> None:
    """Do nothing: the run may still finish its step. A function, because child processes would inherit ``SIG_IGN``."""


def end_with(lifeline: int) -> None:
    """Let Linux kill this process and those that it starts when the other end of a pipe is closed."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # closed already
        os._exit(1)


def serve(channel: Connection) -> None:
    """Prepare the reward, report that it is ready, and answer calls."""
    sys.path[:], pickled = channel.recv()
    try:
        reward, needs = pickle.loads(pickled), []
        if isinstance(reward, OwnProcessReward):
            reward.prepare()
            needs = sorted(reward.needs)
    except InputError as error:
        return _send(channel, {"refused": [error.asked, error.why, error.instead]})
    except BaseException as error:  # foreign code: importing it may raise anything
        return _send(channel, {"failed": "".join(traceback.format_exception_only(error)).strip()})
    _send(channel, {"needs": needs})
    while True:
        answer = ask(reward, *channel.recv())
        _send(channel, {"values": answer.values, "failure": answer.failure, "message": answer.message})


def _send(channel: Connection, message: dict[str, Any]) -> None:
    channel.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main()
