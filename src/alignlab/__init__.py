"""Compose any alignment method, model, adapter, strategy and data from one line."""

import logging
import os
from typing import Any

# Read when torch is loaded, so it stands here. Threads wait for each other by spinning, and by default so long that on
# two cores shared with another such job training was 25 times slower. A thirtieth of it costs nothing measurable alone.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# bitsandbytes warns when it is imported of a speed-up that it did not find.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

LAZY = ("Run", "compose", "evaluate", "train")
"""Names of ``alignlab.api``, which imports torch and Transformers."""

__all__ = ["Run", "__version__", "compose", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("alignlab")
    if name in LAZY:
        from alignlab import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
