"""Rows in micro-batches, in order, each once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from alignlab.data.batching.collate import collate
from alignlab.data.batching.plan import plan_step
from alignlab.data.settings import PlanSettings
from alignlab.types.batch import MicroBatch, move
from alignlab.types.rows import TokenRow

PLANNED = 1024
"""Rows that are divided into micro-batches at a time."""


def micro_batches(
    rows: Sequence[TokenRow], plan: PlanSettings, *, packing: bool, pad_token_id: int, device: torch.device
) -> Iterator[tuple[list[TokenRow], MicroBatch]]:
    """Yield the rows of each micro-batch, and the micro-batch.

    Args:
        rows: All rows.
        plan: Limits of a micro-batch.
        packing: Whether micro-batches are flat, without padding.
        pad_token_id: Id that fills padded rows.
        device: Device of the micro-batches.
    """
    for start in range(0, len(rows), PLANNED):
        some = rows[start : start + PLANNED]
        for planned in plan_step([len(row.tokens) for row in some], plan, num_ranks=1)[0]:
            own = [some[index] for index in planned.rows]
            yield own, move(collate(own, packing=packing, pad_token_id=pad_token_id), device)


def row_of_sequence(rows: Sequence[TokenRow]) -> Tensor:
    """Index of the row of each completion of a micro-batch. Shape ``[S]``."""
    counts = [sum(len(group) - 1 for group in row.groups) for row in rows]
    return torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))


def row_sums(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Sum values over each row.

    Args:
        values: One per token or per completion. Shape ``[M]``.
        row: Index of the row of each. Shape ``[M]``.
        num_rows: R.

    Returns:
        Shape ``[R]``, float64, on the CPU.
    """
    return torch.zeros(num_rows, dtype=torch.float64).index_add_(0, row.cpu(), values.detach().double().cpu())
