"""Settings of the C library's allocator."""

import ctypes
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Numbers of ``mallopt`` in glibc's ``malloc.h``."""
MIB = 2**20


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is needed next, instead of returning it to the system.

    A step frees its activations and the next one needs as many. By default each block above 32 MiB is given back and
    asked for again, and the system clears every page of it. Other C libraries, and settings of the user's own in
    ``MALLOC_…`` or ``GLIBC_TUNABLES``, are left alone; so are preloaded allocators.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)  # never
        mallopt(TOP_PAD, 64 * MIB)
