"""Executors of rewards: a thread of the run, or a separate process that can be stopped.

A thread cannot be ended, and one that keeps the interpreter lock blocks all others. Rewards that may hang therefore run
in a process: our rewards that run code or patterns of the user, and rewards of other packages that can be pickled.
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
from alignlab.rewards.answers import Answer, ask, failed_answer
from alignlab.rewards.own_process import OwnProcessReward

log = logging.getLogger(__name__)

SECONDS_TO_START = 120
"""Time for a process to import what its reward needs."""

MAX_PRINTED = 2**16
"""Maximum characters of a line that are read at once."""

MAX_HANGING_CALLS = 5
"""Number of hanging calls after which a reward is not called again."""


class InThread:
    """Runs a reward in threads of this process. Calls that hang are abandoned; after several it is not called again."""

    def __init__(self, reward: Callable[..., Any]):
        self.reward, self.hanging = reward, 0
        self.needs: set[str] = getattr(reward, "needs", set())

    def make_ready(self) -> str:
        """Return an empty text, or why the reward cannot be called."""
        return f"{self.hanging} calls of it hang" if self.hanging >= MAX_HANGING_CALLS else ""

    def ask(self, *arguments: Any) -> Answer:
        """Call the reward as ``answers.ask`` does."""
        return ask(self.reward, *arguments)

    def give_up(self) -> None:
        """Abandon a call that hangs."""
        self.hanging += 1

    def close(self) -> None:
        """Do nothing: threads end with the process."""


class InProcess:
    """Runs a reward in a separate process, which keeps its state between calls and is restarted if needed.

    Args:
        reward: A reward that can be pickled.
    """

    def __init__(self, reward: Callable[..., Any]):
        self.pickled = pickle.dumps(reward)
        self.worker: _Worker | None = None

    @property
    def needs(self) -> set[str]:
        """Names of the columns that the reward cannot do without; empty before its process is ready."""
        return self.worker.needs if self.worker else set()

    def make_ready(self) -> str:
        """Start the process if it does not run, and wait for it; return an empty text, or why it cannot be called.

        Raises:
            InputError: The reward refuses its arguments.
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
        """Call the reward as ``answers.ask`` does."""
        worker = self.worker
        try:
            worker.channel.send((completions, prompts, dict(columns), num_retries))
            return Answer(**json.loads(worker.channel.recv_bytes()))
        except (EOFError, OSError, ValueError):
            return failed_answer(len(completions), "died", worker.exit_message())

    def give_up(self) -> None:
        """Stop the process; the next call starts a new one."""
        self.close()

    def close(self) -> None:
        """Stop the process and every process that it started."""
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
        self.needs: set[str] = set()
        with contextlib.suppress(OSError):  # it has already ended, which wait_until_ready reports
            self.channel.send((sys.path, pickled))

    def is_alive(self) -> bool:
        """Whether the process runs. It is not reaped, so that its id is not reused."""
        if self.process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # reaped by another part of the program
            return False

    def wait_until_ready(self) -> str:
        """Return an empty text, or why the process is not ready."""
        if self.fault is None:
            self.fault = self._greeting()
        return self.fault

    def _greeting(self) -> str:
        try:
            if not self.channel.poll(SECONDS_TO_START):
                return f"its process was not ready within {SECONDS_TO_START} s"
            message = json.loads(self.channel.recv_bytes())
        except (EOFError, OSError, ValueError):
            return self.exit_message()
        if "refused" in message:
            raise InputError(*message["refused"])
        self.needs = set(message.get("needs", ()))
        return message.get("failed", "")

    def exit_message(self) -> str:
        """End the process if it still runs, and describe how it ended."""
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
        start_new_session=True,  # Ctrl-C in a terminal must reach the run only
    )


def _relay(output: TextIO) -> None:
    """Print what a reward prints, so that train.log contains it too."""
    with output:
        while text := output.readline(MAX_PRINTED):
            print(text, end="", flush=True)


def _stop(process: subprocess.Popen, lifeline: int, parent: int) -> None:
    if os.getpid() == parent:  # a forked child inherits the finalizer
        _kill(process)
        process.wait()
        os.close(lifeline)


def _kill(process: subprocess.Popen) -> None:
    """Kill a process and those that it started, unless it was reaped, since its id may then be reused."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def make_executor(name: str, reward: Callable[..., Any]) -> InThread | InProcess:
    """Choose and start the executor of a reward.

    Args:
        name: Name of the reward.
        reward: The reward.

    Raises:
        InputError: The reward refuses its arguments, or its process does not become ready.
    """
    if not (isinstance(reward, OwnProcessReward) or _can_move(reward)):
        return InThread(reward)
    try:
        executor = InProcess(reward)
    except Exception as error:  # pickling may raise anything
        fault = str(error)
    else:
        fault = executor.make_ready()
        if not fault:
            return executor
    if isinstance(reward, OwnProcessReward):
        raise InputError(f"method.reward.{name}", fault, "Correct what it runs, and start again")
    log.warning("reward %s runs in the process of the run, where it cannot be stopped: %s", name, fault)
    return InThread(reward)


def _can_move(reward: Callable[..., Any]) -> bool:
    """Whether a reward of another package may run in another process.

    A reward with a method ``to`` computes on the device of the run; ``own_process = False`` keeps a reward in the run.
    """
    inner = reward.func if isinstance(reward, functools.partial) else reward
    home = str(getattr(inner, "__module__", None) or type(inner).__module__).split(".")[0]
    return home not in ("alignlab", "__main__") and not hasattr(reward, "to") and getattr(reward, "own_process", True)
