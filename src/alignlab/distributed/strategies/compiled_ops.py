"""DeepSpeed's C++ operators, which PyTorch compiles on first use, and locks that a killed compilation leaves behind.

PyTorch marks a compilation by an empty file ``lock`` beside its ``build.ninja``, and removes it at the end. A process
that is killed meanwhile leaves the file, and every later process waits for it forever, without a message
(``torch.utils.file_baton``).
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

log = logging.getLogger(__name__)

SECONDS_TO_COMPILE = 1800
"""Age from which on a lock is removed. A younger one may be of another machine that shares the folder."""


def remove_dead_locks() -> None:
    """Remove old locks that no process holds open, and warn of young ones; a process that compiles holds its lock."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = {str(lock.resolve()) for lock in _locks(root)}
    if not locks or not Path("/proc/self/fd").is_dir():
        return
    for lock in sorted(locks - set(_open_files())):
        with suppress(OSError):  # another process did it first
            if time.time() - os.stat(lock).st_mtime < SECONDS_TO_COMPILE:
                log.warning("no process here holds %s; remove it if no other machine compiles, else this waits", lock)
                continue
            os.unlink(lock)
            log.warning("removed %s, which a killed compilation left behind", lock)


def _locks(root: Path) -> Iterator[Path]:
    """Locks of PyTorch, and no other files of that name."""
    for pattern in ("*/lock", "*/*/lock"):
        for lock in root.glob(pattern):
            is_empty_file = lock.is_file() and not lock.is_symlink() and lock.stat().st_size == 0
            if is_empty_file and lock.with_name("build.ninja").is_file():
                yield lock


def _open_files() -> Iterator[str]:
    """Paths that the processes of this user hold open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has closed the file or ended, or is another user's
            yield os.readlink(link)
