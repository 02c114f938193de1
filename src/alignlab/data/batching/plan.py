"""Whole optimizer steps, planned from known lengths for all ranks before anything is computed.

A step takes the next ``global_batch_size`` rows (fewer in a short last step). They are divided among ranks and
micro-batches so that each micro-batch has about the same number of tokens, and at most ``batch_size_per_device`` rows
and ``max_tokens_per_micro_batch`` tokens. Every rank gets the same number of micro-batches, because collectives need
that; an empty micro-batch is filled with a row that does not count. Since sums are divided by the totals of the whole
step (``optim/reduction.py``), the gradient does not depend on how the step is cut.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.data.settings import PlanSettings


@dataclass(frozen=True)
class PlannedMicroBatch:
    """Rows of one micro-batch, as indices into the rows of its step; ``counted`` is 0 for a filler."""

    rows: tuple[int, ...]
    counted: int = 1


def plan_epoch(
    lengths: np.ndarray, settings: PlanSettings, epoch: int, keys: np.ndarray | None = None
) -> list[np.ndarray]:
    """Plan the rows of each optimizer step of an epoch; at most one step is short.

    Args:
        lengths: Tokens of each row. Shape ``[rows]``.
        settings: How rows become steps.
        epoch: Epoch, from 0; it and the seed decide the random order.
        keys: Values of ``order_column``, for a curriculum. Shape ``[rows]``.

    Returns:
        For each step the indices of its rows. Shape ``[global_batch_size]``, or less for the short step.
    """
    order = order_rows(lengths, settings, epoch, keys)
    size = settings.global_batch_size
    steps = [order[start : start + size] for start in range(0, len(order), size)]
    if settings.order == "by_length":
        # Rows of similar length share a step; the steps themselves come in random order.
        steps = [steps[i] for i in _generator(settings.seed, epoch, stream=1).permutation(len(steps))]
    return steps


def order_rows(lengths: np.ndarray, settings: PlanSettings, epoch: int, keys: np.ndarray | None = None) -> np.ndarray:
    """Indices of the rows in the order of the epoch. Shape ``[rows]``."""
    shuffled = _generator(settings.seed, epoch).permutation(len(lengths))
    if settings.order == "as_is":
        return np.arange(len(lengths))
    if settings.order == "by_length":
        return shuffled[np.argsort(lengths[shuffled], kind="stable")]
    if settings.order == "curriculum":
        return np.argsort(keys, kind="stable")
    return shuffled


def plan_step(
    lengths: Sequence[int], settings: PlanSettings, num_ranks: int
) -> tuple[tuple[PlannedMicroBatch, ...], ...]:
    """Cut the rows of one step into micro-batches of about equal tokens, the same number on every rank.

    Args:
        lengths: Tokens of each row of the step, at least one.
        settings: Limits of a micro-batch.
        num_ranks: Data-parallel ranks.

    Returns:
        The micro-batches of each rank.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    per_rank = -(-len(lengths) // (settings.batch_size_per_device * num_ranks))
    if (limit := settings.max_tokens_per_micro_batch) is not None:
        tokens = int(sum(min(length, limit) for length in lengths))
        per_rank = max(per_rank, -(-tokens // (limit * num_ranks)))
    while (bins := _fill(longest_first, lengths, settings, num_ranks * per_rank)) is None:
        per_rank += 1 + per_rank // 10
    filler = PlannedMicroBatch((longest_first[-1],), counted=0)
    batches = [PlannedMicroBatch(tuple(sorted(rows))) if rows else filler for rows in bins]
    return tuple(tuple(batches[rank::num_ranks]) for rank in range(num_ranks))


def _fill(
    longest_first: Sequence[int], lengths: Sequence[int], settings: PlanSettings, num_bins: int
) -> list[list[int]] | None:
    """Put each row, longest first, into the bin with the fewest tokens; ``None`` if a row does not fit."""
    limit = settings.max_tokens_per_micro_batch
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, index) for index in range(num_bins)]
    for row in longest_first:
        tokens, index = heapq.heappop(heap)
        # This bin has the fewest tokens, so a row that does not fit here fits nowhere.
        if bins[index] and limit is not None and tokens + lengths[row] > limit:
            return None
        bins[index].append(row)
        if len(bins[index]) < settings.batch_size_per_device:
            heapq.heappush(heap, (tokens + int(lengths[row]), index))
    return bins


def _generator(seed: int, epoch: int, stream: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, stream])
