"""Small disks of one's own, where this process may mount."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.cases import Skipped


def mounts(kind: str, place: Path, options: str) -> bool:
    """Mount a file system on a folder; whether that was permitted."""
    command = ["mount", "-t", kind, "-o", options, kind, str(place)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def unmount(place: Path) -> None:
    """Take it away again, also while somebody holds a file on it."""
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True)


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A disk of so many bytes at a folder that is made."""
    place.mkdir()
    if not mounts("tmpfs", place, f"size={size}"):
        raise Skipped("a small disk needs the right to mount a tmpfs")
    try:
        yield place
    finally:
        unmount(place)


def remount(place: Path, options: str) -> None:
    """Change a disk while it is in use: ``size=…``, ``ro``, ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)
