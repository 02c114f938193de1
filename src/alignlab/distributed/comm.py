"""Rank of this process, number of ranks, and collectives over Python objects."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")


def rank() -> int:
    """Global rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """Number of data-parallel processes of the run; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_gather(value: Result) -> list[Result]:
    """Gather the values of all ranks, in the order of ranks.

    Args:
        value: Value of this rank; must be picklable.
    """
    values = [value] * num_ranks()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum tensors over all ranks, in place. All ranks must call this.

    Args:
        values: Tensor on this rank's device, of the same shape on all ranks. Any shape.

    Returns:
        The sum, on every rank.
    """
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def on_rank_zero(act: Callable[[], Result]) -> Result:
    """Call a function on rank 0 and broadcast its result. All ranks must call this.

    Args:
        act: Called on rank 0 only.

    Returns:
        Result of ``act``, pickled for the other ranks.

    Raises:
        Exception: The exception of ``act``, on every rank, so that no rank waits for one that has failed.
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
