"""The processes of a run: who this one is, what all of them have, and what one does for all."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


def rank() -> int:
    """This process among all of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """Data-parallel processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(value: Result) -> list[Result]:
    """The values of all ranks, in their order."""
    values = [value] * num_ranks()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of the values of all ranks, on each of them.

    Args:
        values: On this rank's device, of the same shape on all ranks. Any shape; added to in place.
    """
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def on_rank_zero(act: Callable[[], Result]) -> Result:
    """Let rank 0 act; the others wait for it and are told.

    Args:
        act: Called on rank 0 only.

    Returns:
        What it returned, pickled on its way to the others.

    Raises:
        Exception: What it raised, on every rank: one that waited for the others' next word would wait in vain.
    """
    if not dist.is_initialized():
        return act()
    outcome: list = [None, None]
    if rank() == 0:
        try:
            outcome[0] = act()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]
