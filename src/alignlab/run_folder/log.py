"""train.log: a copy of everything printed and logged, without colours and frames of progress bars."""

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
"""The root logger, and loggers that do not propagate to it."""

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@contextlib.contextmanager
def captured(path: Path, rank: int = 0) -> Iterator[None]:
    """Append a copy of everything printed and logged inside the block, and of the error that ends it, to a file.

    Args:
        path: The log file, in an existing folder.
        rank: Above 0, the output goes to a separate file of that rank instead, so that only rank 0 prints.
    """
    path = path.with_name(f"{path.stem}-rank{rank}{path.suffix}") if rank else path
    with path.open("a", encoding="utf-8", buffering=1) as file, _moved(file) if rank else _copied(FailSafeFile(file)):
        try:
            yield
        except Exception:
            FailSafeFile(file).write(masked(traceback.format_exc()))
            raise


@contextlib.contextmanager
def _copied(file: TextIO) -> Iterator[None]:
    outputs = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = CopiedStream(sys.stdout, file), CopiedStream(sys.stderr, file)
    try:
        with _handler(file):
            yield
    finally:
        for copied in (sys.stdout, sys.stderr):
            if isinstance(copied, CopiedStream):
                copied.finish()
        sys.stdout, sys.stderr = outputs


@contextlib.contextmanager
def _moved(file: TextIO) -> Iterator[None]:
    """Redirect both outputs of the process, including those of libraries written in C."""
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


class FailSafeFile:
    """A text file whose errors, such as a full disk, are ignored: the log must not end the run.

    Args:
        file: File opened for writing, with line buffering.
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


class CopiedStream:
    """A text stream that also writes its complete lines to a file.

    Args:
        terminal: The original stream; text written to it directly is not copied.
        file: File that gets the copy.
    """

    def __init__(self, terminal: TextIO, file: TextIO):
        self.terminal, self.file, self._line = terminal, file, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    def write(self, text: str) -> int:
        """Write the text without secrets; of a line with carriage returns, the file gets the last state."""
        text = masked(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self.file.write(CONTROL.sub("", line).rstrip("\r").rpartition("\r")[2] + "\n")
        return self.terminal.write(text)

    def writelines(self, lines) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def finish(self) -> None:
        """End a last line that is not complete."""
        if self._line:
            self.write("\n")


def terminal(stream: TextIO) -> TextIO:
    """The stream without its copy in the log, for output such as progress bars."""
    return stream.terminal if isinstance(stream, CopiedStream) else stream


class MaskedFormatter(logging.Formatter):
    """Formats records without the secrets that this process knows."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with its traceback if there is one."""
        return masked(super().format(record))


@contextlib.contextmanager
def _handler(file: TextIO) -> Iterator[None]:
    handler = logging.StreamHandler(file)
    handler.setFormatter(MaskedFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    # A record that propagates through two of the loggers would be written twice.
    loggers = [logger for logger in map(logging.getLogger, LOGGERS) if not logger.propagate or logger.name == "root"]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
