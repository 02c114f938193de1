"""Files that are written whole or not at all, and manifests that show what was damaged later."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
LOCK = ".lock"
"""File in a run's folder that its process holds a lock on."""

BROKEN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
IN_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "enforce fail at inline_container",
)
"""How libraries written in other languages say the same (safetensors, torch.save)."""


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Args:
        path: File to write or to replace; its folder is made where it is absent.
        text: The new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file, or the list of files of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write down what lies in a folder: the size and the SHA-256 of every file.

    Args:
        folder: Complete; every file of it is synced first.
        **facts: Further entries of the manifest.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    contents = {str(path.relative_to(folder)): _fingerprint(path) for path in files}
    for path in files:
        sync(path)
    write_text(folder / MANIFEST, json.dumps({**facts, "files": contents}, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The facts that ``write_manifest`` was given.

    Raises:
        ValueError: The folder is not as its manifest says; the message names what is missing or different.
    """
    try:
        if not (folder / MANIFEST).is_file():  # reading a pipe would wait for ever
            raise ValueError
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest.pop("files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{MANIFEST} is missing or cannot be read") from None
    faults = (_fault(folder, name, expected) for name, expected in files.items())
    if found := next(filter(None, faults), None):
        raise ValueError(found)
    return manifest


def _fault(folder: Path, name: str, expected: Any) -> str | None:
    if not isinstance(expected, dict) or {"bytes", "sha256"} - expected.keys():
        return f"{MANIFEST} says nothing of the content of {name}"
    try:
        if (folder / name).exists() and not (folder / name).is_file():
            return f"{name} is no file"
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size:,} bytes where {MANIFEST} says {expected['bytes']}"
        same = _fingerprint(folder / name) == expected
    except OSError as error:
        return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read ({error})"
    return None if same else f"the content of {name} is not what {MANIFEST} says"


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def disk_fault(error: BaseException, folder: Path) -> str | None:
    """What an exception says of a disk that is full, read-only or broken, of a folder that is gone, or of a file in it.

    Args:
        error: With what it was raised from, or while handling.
        folder: Of the run, which holds ``LOCK``. Where that is gone, the folder was removed, renamed or unmounted,
            even if something has been written under its name since.

    Returns:
        One line; None where the exception is about something else.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = " ".join(str(seen).split())
        at_fault = getattr(seen, "errno", None) in BROKEN_DISK or any(words in text for words in IN_WORDS)
        if at_fault or _names_file_in(seen, folder):
            return text[:300]
        seen = seen.__cause__ or seen.__context__
    return None if (folder / LOCK).exists() else "the folder is gone"


def _names_file_in(error: BaseException, folder: Path) -> bool:
    """Whether the system complains of a file in a folder: something else lies there under its name, for example."""
    names = (getattr(error, "filename", None), getattr(error, "filename2", None)) if isinstance(error, OSError) else ()
    return any(isinstance(name, str | Path) and folder.resolve() in Path(name).absolute().parents for name in names)
