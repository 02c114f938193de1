"""A run that died of memory: what took it, and what to type instead."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from alignlab.data.datamodule import DataModule
from alignlab.errors import RunError
from alignlab.estimate.build import Models
from alignlab.estimate.cards import GIB
from alignlab.estimate.changes import cheapest_changes
from alignlab.estimate.estimate import estimate, hardware_of

log = logging.getLogger(__name__)

CPU_MESSAGES = ("can't allocate memory", "not enough memory")
"""What PyTorch's allocators of main memory say, in a plain ``RuntimeError``."""

LESS = 0.9
"""Share of the estimated memory, without libraries, that a change must stay below to be named."""

MAX_TERMS = 3

MFU = 0.4


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory of a card or of the machine is exhausted."""
    is_of_cpu = type(error) is RuntimeError and any(message in str(error) for message in CPU_MESSAGES)
    return is_of_cpu or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def explain(config: Mapping[str, Any], data: DataModule, error: BaseException) -> RunError:
    """The largest terms of the estimate, and the cheapest changes that need less; the error if there is no estimate.

    Args:
        config: Checked and resolved, of the run.
        data: Opened, with the number of steps of the run.
        error: What the run died of.
    """
    try:
        return _explained(config, data)
    except Exception as failure:  # of the estimate, which must not hide the error
        log.warning("no estimate: %s", failure)
        why = f"memory is exhausted: {' '.join(str(error).split())[:200]}"
        instead = "Type a smaller data.batch_size_per_device, or model.gradient_checkpointing=true"
        return RunError("training", why, instead)


def _explained(config: Mapping[str, Any], data: DataModule) -> RunError:
    models, hardware = Models(data), hardware_of(config, None)
    found = estimate(config, models, hardware, MFU)
    memory, fixed = found.memory, found.memory.terms["libraries"][found.memory.peak_moment]
    limit = min(found.capacity, int(fixed + LESS * (memory.peak - fixed)))
    terms = ", ".join(f"{name} {size / GIB:,.2f}" for name, size in memory.largest[:MAX_TERMS])
    why = (
        f"memory is exhausted; by the estimate a process needs {memory.peak / GIB:,.2f} GiB"
        f" of {found.capacity / GIB:,.1f} in {memory.peak_moment}, most of it for {terms}"
    )
    changes = [change.words for change, _ in cheapest_changes(config, models, hardware, limit, MFU)]
    ways = f"Type {', or '.join(changes)}" if changes else "Take a smaller model or a larger card"
    return RunError(f"training on {hardware}", why, f"{ways}; alignlab estimate shows all terms")
