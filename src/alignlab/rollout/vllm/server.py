"""A vLLM server: a process that the run starts, or an external server at a URL."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from alignlab.rollout.vllm.client import Refused, Unreachable, call
from alignlab.system.processes import signal_when_parent_ends

log = logging.getLogger(__name__)

NUM_LAST_LINES = 15
SECONDS_BETWEEN_CHECKS = 0.5


class ServerError(RuntimeError):
    """A server has failed and does not recover."""


class Server:
    """A server: its URL and, unless it is external, how to start it.

    Args:
        url: ``http://host:port``.
        command: Command line that starts it; ``None`` for an external server.
        environment: Environment variables of its process.
        log_file: File for its output.
        num_restarts: Number of times that it is restarted after it has died.
    """

    def __init__(
        self,
        url: str,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        log_file: Path | None = None,
        num_restarts: int = 0,
    ):
        self.url, self.command, self.environment = url.rstrip("/"), command, environment
        self.log_file, self.restarts_left = log_file, num_restarts
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the process, unless the server is external, without waiting for it. It ends with this thread."""
        if self.command is None:
            return
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own children can be ended with it
                preexec_fn=partial(signal_when_parent_ends, signal.SIGTERM),
            )

    def wait(self, timeout_seconds: float) -> None:
        """Wait until it responds; restart it if it has died and restarts are left.

        Raises:
            ServerError: It has died, or does not respond in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._answers():
            if self.process is not None and self.process.poll() is not None:
                self._restart()
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the vLLM server {self.url} has not answered for {timeout_seconds:g} s{self._log_tail()}"
                )
            time.sleep(SECONDS_BETWEEN_CHECKS)

    def request_stop(self) -> None:
        """Ask the process to end, without waiting, unless the server is external."""
        if self.process is not None:
            _signal_group(self.process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Stop the process and its children, unless the server is external."""
        if self.process is None:
            return
        for sign, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            _signal_group(self.process.pid, sign)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
            break
        _signal_group(self.process.pid, signal.SIGKILL)
        self.process = None

    def _answers(self) -> bool:
        try:
            call(self.url, "/health", timeout_seconds=10)
        except (Unreachable, Refused):
            return False
        return True

    def _restart(self) -> None:
        message = f"the vLLM server {self.url} ended with exit code {self.process.returncode}{self._log_tail()}"
        if self.restarts_left == 0:
            raise ServerError(message)
        log.warning("%s\nIt is restarted.", message)
        self.restarts_left -= 1
        self.stop()
        self.start()

    def _log_tail(self) -> str:
        if self.log_file is None:
            return ""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LAST_LINES:]
        return f"; the last lines of {self.log_file}:\n" + "\n".join(f"    {line}" for line in lines)


def _signal_group(process_id: int, sign: signal.Signals) -> None:
    try:
        os.killpg(process_id, sign)
    except ProcessLookupError:
        return
