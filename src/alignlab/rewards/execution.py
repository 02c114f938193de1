"""Where a reward runs: in a thread of the run, or in a process of its own that can be stopped.

A thread cannot be ended, and one that computes without giving way holds up all others; so whatever may hang runs in a
process: our rewards that run code or patterns of the user, and rewards from other packages that can be pickled.
"""

import contextlib
import functools
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Pipe
from typing import Any, TextIO

from alignlab.errors import InputError
from alignlab.rewards.answers import Answer, ask, nothing
from alignlab.rewards.own_process import Apart

log = logging.getLogger(__name__)

SECONDS_TO_START = 120
"""For a process to import what its reward needs."""

MAX_PRINTED = 2**16
"""Characters of a line that are held at once."""

MAX_LEFT_BEHIND = 5
"""Threads that hang, after which a reward is not called again."""


class InThread:
    """A reward in this process. A call that hangs is left behind; after several the reward is not called again."""

    def __init__(self, reward: Callable[..., Any]):
        self.reward, self.left_behind = reward, 0

    def make_ready(self) -> str:
        """Nothing, or why it cannot be called."""
        return f"{self.left_behind} calls of it hang" if self.left_behind >= MAX_LEFT_BEHIND else ""

    def ask(self, *arguments: Any) -> Answer:
        """As `answers.ask`."""
        return ask(self.reward, *arguments)

    def give_up(self) -> None:
        """Leave a call behind."""
        self.left_behind += 1

    def close(self) -> None:
        """Nothing: threads end with the process."""


class InProcess:
    """A reward in a process of its own, which keeps its state between calls; stopped and started anew if need be.

    Args:
        reward: Can be pickled, and unpickled there.
    """

    def __init__(self, reward: Callable[..., Any]):
        self.pickled = pickle.dumps(reward)
        self.worker: _Worker | None = None

    def make_ready(self) -> str:
        """Nothing, or why it cannot be called; starts the process where it does not run, and waits until it does.

        Raises:
            InputError: The reward refuses what it was told.
        """
        if self.worker is not None and not self.worker.is_alive():
            self.close()
        try:
            self.worker = self.worker or _Worker(self.pickled)
        except OSError as error:
            return f"its process cannot be started ({error})"
        fault = self.worker.wait_until_ready()
        if fault:
            self.close()
        return fault

    def ask(
        self, completions: Sequence[str], prompts: Sequence[Any], columns: Mapping[str, list], num_retries: int
    ) -> Answer:
        """As `answers.ask`."""
        worker = self.worker
        try:
            worker.channel.send((completions, prompts, dict(columns), num_retries))
            return Answer(**json.loads(worker.channel.recv_bytes()))
        except (EOFError, OSError, ValueError):
            return nothing(len(completions), "died", worker.epitaph())

    def give_up(self) -> None:
        """Stop it; the next call begins with a new process."""
        self.close()

    def close(self) -> None:
        """Stop the process and all that it started."""
        if self.worker is not None:
            self.worker.stop()
        self.worker = None


class _Worker:
    """A running process of ``rewards.worker``."""

    def __init__(self, pickled: bytes):
        self.channel, theirs = Pipe()
        reading, writing = os.pipe()
        try:
            self.process = _start(theirs.fileno(), reading)
        except OSError:
            os.close(writing)
            raise
        finally:
            theirs.close()
            os.close(reading)
        threading.Thread(target=_relay, args=(self.process.stdout,), daemon=True).start()
        self.stop = weakref.finalize(self, _stop, self.process, writing, os.getpid())
        self.fault: str | None = None
        with contextlib.suppress(OSError):  # it has ended already, which is told when it is waited for
            self.channel.send((sys.path, pickled))

    def is_alive(self) -> bool:
        """Whether it has not ended; it is not waited for, so that its number stays its own."""
        if self.process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # another part of the program waits for all children
            return False

    def wait_until_ready(self) -> str:
        """Nothing, or why it did not become ready."""
        if self.fault is None:
            self.fault = self._greeting()
        return self.fault

    def _greeting(self) -> str:
        try:
            if not self.channel.poll(SECONDS_TO_START):
                return f"its process was not ready within {SECONDS_TO_START} s"
            message = json.loads(self.channel.recv_bytes())
        except (EOFError, OSError, ValueError):
            return self.epitaph()
        if "refused" in message:
            raise InputError(*message["refused"])
        return message.get("failed", "")

    def epitaph(self) -> str:
        """How the process ended; one that only broke the connection is ended."""
        _kill(self.process)
        code = self.process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}"


def _start(channel: int, lifeline: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-P", "-u", "-m", "alignlab.rewards.worker", str(channel), str(lifeline)],
        pass_fds=[channel, lifeline],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C in a terminal is for the run
    )


def _relay(output: TextIO) -> None:
    """Print what a reward prints, so that it stands in train.log too."""
    while text := output.readline(MAX_PRINTED):
        print(text, end="", flush=True)


def _stop(process: subprocess.Popen, lifeline: int, owner: int) -> None:
    if os.getpid() == owner:  # else a forked child clears up what it inherited
        _kill(process)
        process.wait()
        os.close(lifeline)


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and those that it started, unless it was waited for: then its number may be another's."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def place_for(name: str, reward: Callable[..., Any]) -> InThread | InProcess:
    """Where a reward runs, ready to be called.

    Args:
        name: Of the reward.
        reward: The reward.

    Raises:
        InputError: It refuses what it was told, or its process does not become ready.
    """
    if not (isinstance(reward, Apart) or _may_move(reward)):
        return InThread(reward)
    try:
        place = InProcess(reward)
    except Exception as error:  # whatever pickling its parts raises
        fault = str(error)
    else:
        fault = place.make_ready()
        if not fault:
            return place
    if isinstance(reward, Apart):
        raise InputError(f"method.reward.{name}", fault, "Mend what it runs, and start again")
    log.warning("reward %s stays in the process of the run, where it cannot be stopped: %s", name, fault)
    return InThread(reward)


def _may_move(reward: Callable[..., Any]) -> bool:
    """Whether a reward of another package can be expected to do in another process what it does here.

    One with a method ``to`` computes on the device of the run; one with ``own_process = False`` says that it stays.
    """
    inner = reward.func if isinstance(reward, functools.partial) else reward
    home = str(getattr(inner, "__module__", None) or type(inner).__module__).split(".")[0]
    return home not in ("alignlab", "__main__") and not hasattr(reward, "to") and getattr(reward, "own_process", True)
