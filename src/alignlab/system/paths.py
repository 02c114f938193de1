"""Paths as users type them, asked of the system once, so that nothing later trips over a name that cannot be."""

import os
from pathlib import Path

from alignlab.errors import InputError


def typed_path(path: str | Path, asked: str) -> Path:
    """The path with ``~`` resolved; whether anything is there is left to the caller.

    After this, ``exists``, ``is_file`` and ``is_dir`` answer: Python lets them raise where a name is too long or a
    folder on the way may not be searched.

    Args:
        path: As typed.
        asked: The key that it was typed for, ``data.path``.

    Raises:
        InputError: The system has no such names, there is no such home folder, or the way there is closed.
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
    """What the system or a library says in one line, at most 400 characters, without the path where it names it again.

    Args:
        error: Any exception.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:400] or type(error).__name__


def _short(path: str | Path) -> str:
    text = str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= 100 else f"{text[:60]}… ({len(text)} characters)"
