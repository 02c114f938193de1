"""A vLLM server: a process of ours, or one that somebody else runs at a URL."""

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
SECONDS_BETWEEN_LOOKS = 0.5


class ServerError(RuntimeError):
    """A server is gone and does not come back."""


class Server:
    """Where a server answers, and, if it is ours, how to start it.

    Args:
        url: ``http://host:port``.
        command: Command line that starts it; ``None`` where somebody else does.
        environment: Its environment variables.
        log_file: Takes what it prints.
        num_restarts: Times that it is started again after it died.
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
        """Start the process, unless it is somebody else's; it answers some time after, and ends with this thread."""
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
        """Return as soon as it answers; start it again where it died and may be.

        Raises:
            ServerError: It is dead, or does not answer in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._answers():
            if self.process is not None and self.process.poll() is not None:
                self._start_again()
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the vLLM server {self.url} has not answered for {timeout_seconds:g} s{self._words()}"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def ask_to_end(self) -> None:
        """Begin what ``stop`` waits for, if the process is ours."""
        if self.process is not None:
            _signal_group(self.process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """End the process and its children, if it is ours."""
        if self.process is None:
            return
        for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            _signal_group(self.process.pid, sign)
            try:
                self.process.wait(patience)
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

    def _start_again(self) -> None:
        told = f"the vLLM server {self.url} ended with exit code {self.process.returncode}{self._words()}"
        if self.restarts_left == 0:
            raise ServerError(told)
        log.warning("%s\nIt is started again.", told)
        self.restarts_left -= 1
        self.stop()
        self.start()

    def _words(self) -> str:
        if self.log_file is None:
            return ""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LAST_LINES:]
        return f"; the last lines of {self.log_file}:\n" + "\n".join(f"    {line}" for line in lines)


def _signal_group(process_id: int, sign: signal.Signals) -> None:
    try:
        os.killpg(process_id, sign)
    except ProcessLookupError:
        return
