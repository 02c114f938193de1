"""Atomic writing of files, and manifests with checksums to find damaged files."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
LOCK = ".lock"
"""File in a run's folder on which its process holds a lock."""

BROKEN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
IN_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "enforce fail at inline_container",
)
"""Messages for the same errors from libraries that set no errno (safetensors, torch.save)."""


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically: completely or not at all.

    Args:
        path: File to write or to replace; its folder is created if missing.
        text: The new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write the size and the SHA-256 of every file of a folder to its manifest.

    Args:
        folder: A folder with all its files; they are synced first.
        **facts: Further entries of the manifest.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    contents = {str(path.relative_to(folder)): _fingerprint(path) for path in files}
    for path in files:
        sync(path)
    write_text(folder / MANIFEST, json.dumps({**facts, "files": contents}, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Check a folder against its manifest.

    Returns:
        The facts given to ``write_manifest``.

    Raises:
        ValueError: A file is missing or differs from the manifest; the message names the first one.
    """
    try:
        if not (folder / MANIFEST).is_file():  # reading a pipe would wait forever
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
        return f"{MANIFEST} has no size and checksum of {name}"
    try:
        if (folder / name).exists() and not (folder / name).is_file():
            return f"{name} is not a file"
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size:,} bytes, but {expected['bytes']} according to {MANIFEST}"
        same = _fingerprint(folder / name) == expected
    except OSError as error:
        return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read ({error})"
    return None if same else f"the content of {name} is not what {MANIFEST} says"


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def disk_fault(error: BaseException, folder: Path) -> str | None:
    """The message of an exception caused by a full, read-only or broken disk, a missing folder, or a file in it.

    Args:
        error: The exception; its causes and contexts are searched too.
        folder: A run's folder, which holds ``LOCK``. If that is missing, the folder was removed, renamed or unmounted,
            even if something has been written under its name since.

    Returns:
        One line; ``None`` for an exception with another cause.
    """
    current: BaseException | None = error
    while current is not None:
        text = " ".join(str(current).split())
        is_disk_error = getattr(current, "errno", None) in BROKEN_DISK or any(words in text for words in IN_WORDS)
        if is_disk_error or _names_file_in(current, folder):
            return text[:300]
        current = current.__cause__ or current.__context__
    return None if (folder / LOCK).exists() else "the folder is gone"


def _names_file_in(error: BaseException, folder: Path) -> bool:
    """Whether an error of the system names a file in the folder, for example because a folder has the file's name."""
    names = (getattr(error, "filename", None), getattr(error, "filename2", None)) if isinstance(error, OSError) else ()
    return any(isinstance(name, str | Path) and folder.resolve() in Path(name).absolute().parents for name in names)
