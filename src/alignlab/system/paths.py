"""Paths as users type them, checked once so that later calls do not fail on an invalid name."""

import os
from pathlib import Path

from alignlab.errors import InputError


def typed_path(path: str | Path, asked: str) -> Path:
    """Resolve ``~`` in a path, and check that the system accepts it; whether it exists is left to the caller.

    After this, ``exists``, ``is_file`` and ``is_dir`` do not raise. In Python they do for names that are too long and
    for folders without search permission.

    Args:
        path: The path as typed.
        asked: Config key of the path, such as ``data.path``.

    Raises:
        InputError: The name is invalid, the home folder does not exist, or a folder may not be searched.
    """
    try:
        found = Path(path).expanduser()
        os.stat(found)
    except (FileNotFoundError, NotADirectoryError):
        return found
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL byte; RuntimeError: no such home folder
        raise InputError(f"{asked}={_short(path)}", reason(error), "Name another path") from error
    return found


def reason(error: BaseException) -> str:
    """The message of an exception in one line of at most 400 characters; of a system error without its path.

    Args:
        error: Any exception.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:400] or type(error).__name__


def _short(path: str | Path) -> str:
    text = str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= 100 else f"{text[:60]}… ({len(text)} characters)"
