"""DeepSpeed's C++ operators, which PyTorch compiles on first use, and locks that a killed compilation leaves behind.

PyTorch marks a compilation by a file ``lock`` that it removes at the end. A process that is killed meanwhile leaves the
file, and every later process waits for it forever, without a message (``torch.utils.file_baton``).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

log = logging.getLogger(__name__)


def remove_dead_locks() -> None:
    """Remove locks of compilations whose process is gone; a process that compiles holds its lock open."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = {str(lock.resolve()) for pattern in ("*/lock", "*/*/lock") for lock in root.glob(pattern)}
    if not locks or not Path("/proc/self/fd").is_dir():
        return
    for lock in sorted(locks - set(_open_files())):
        with suppress(OSError):  # another process did it first
            os.unlink(lock)
            log.warning("removed %s, which a killed compilation left behind", lock)


def _open_files() -> Iterator[str]:
    """Paths that the processes of this user hold open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has closed the file or ended, or is another user's
            yield os.readlink(link)
