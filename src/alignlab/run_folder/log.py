"""train.log: what was printed and logged, without colours and without the passing frames of a progress bar."""

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from alignlab.system.credentials import masked

LOGGERS = ("", "lightning", "lightning.pytorch", "lightning.fabric", "transformers")
"""Loggers that keep their records to themselves, beside the root."""

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextlib.contextmanager
def captured(path: Path, rank: int = 0) -> Iterator[None]:
    """Copy everything printed and logged inside the block, and the error that ends it, to the end of a file as well.

    Args:
        path: The log file; its folder exists.
        rank: Above 0, everything goes to that rank's own file beside it, and only there: one rank speaks to the user.
    """
    path = path.with_name(f"{path.stem}-rank{rank}{path.suffix}") if rank else path
    with path.open("a", encoding="utf-8", buffering=1) as file, _moved(file) if rank else _copied(Sturdy(file)):
        try:
            yield
        except Exception:
            Sturdy(file).write(masked(traceback.format_exc()))
            raise


@contextlib.contextmanager
def _copied(file: TextIO) -> Iterator[None]:
    outputs = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Copied(sys.stdout, file), Copied(sys.stderr, file)
    try:
        with _handler(file):
            yield
    finally:
        for copied in (sys.stdout, sys.stderr):
            if isinstance(copied, Copied):
                copied.finish()
        sys.stdout, sys.stderr = outputs


@contextlib.contextmanager
def _moved(file: TextIO) -> Iterator[None]:
    """Both outputs of the process, also for what libraries written in C print."""
    saved = [(number, os.dup(number)) for number in (1, 2)]
    for number, _ in saved:
        os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)


class Sturdy:
    """A text file that is given up, without a word, when its disk is full: the log must not end the run.

    Args:
        file: Open for writing, line by line.
    """

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, text: str) -> None:
        """Write, if that is possible."""
        with contextlib.suppress(OSError):
            self.file.write(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with contextlib.suppress(OSError):
            self.file.flush()


class Copied:
    """A text stream that also writes its finished lines to a file.

    Args:
        terminal: The stream proper; write here what should not be in the file.
        file: Where the lines go too.
    """

    def __init__(self, terminal: TextIO, file: TextIO):
        self.terminal, self.file, self._line = terminal, file, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    def write(self, text: str) -> int:
        """Pass the text on, without secrets; keep the last state of a line that a carriage return wrote over."""
        text = masked(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self.file.write(CONTROL.sub("", line).rstrip("\r").rpartition("\r")[2] + "\n")
        return self.terminal.write(text)

    def writelines(self, lines) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """Write a last line that has no end."""
        if self._line:
            self.write("\n")


def terminal(stream: TextIO) -> TextIO:
    """The stream without its copy in the log, for what only a person at a terminal should see."""
    return stream.terminal if isinstance(stream, Copied) else stream


class Masked(logging.Formatter):
    """Records without the secrets that this process knows."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback where there is one."""
        return masked(super().format(record))


@contextlib.contextmanager
def _handler(file: TextIO) -> Iterator[None]:
    handler = logging.StreamHandler(file)
    handler.setFormatter(Masked("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    # A record that reaches two of the loggers on its way up would stand in the file twice.
    loggers = [logger for logger in map(logging.getLogger, LOGGERS) if not logger.propagate or logger.name == "root"]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
