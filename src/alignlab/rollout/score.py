"""Scores of the tokens of a rollout, computed before the first update; the ranks share the work."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignlab.data.batching.collate import collate
from alignlab.data.batching.plan import plan_step
from alignlab.data.settings import PlanSettings
from alignlab.distributed.comm import num_ranks, rank, sum_over_ranks
from alignlab.types.batch import MicroBatch, move
from alignlab.types.rows import TokenRow

Score = Callable[[MicroBatch], dict[str, Tensor]]
"""Micro-batch → values of its supervised tokens, each ``[N]``."""


@torch.no_grad()
def score_rows(
    rows: Sequence[TokenRow],
    score: Score,
    plan: PlanSettings,
    *,
    packing: bool,
    pad_token_id: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Score the tokens of rows. All ranks must call this.

    Args:
        rows: Rows, the same on all ranks; every token of their completions is supervised.
        score: Scores a micro-batch; called equally often on all ranks.
        plan: Limits of a micro-batch.
        packing: Whether micro-batches are flat, without padding, instead of padded.
        pad_token_id: Padding token of the padded layout.
        device: Device of the micro-batches.

    Returns:
        Values of all tokens by name, the same on all ranks, on the CPU. Each ``[N]``, float64.
    """
    offsets = torch.tensor([0, *(sum(row.supervised) for row in rows)]).cumsum(0).tolist()
    table: dict[str, Tensor] = {}
    for planned in plan_step([len(row.tokens) for row in rows], plan, num_ranks())[rank()]:
        batch = move(collate([rows[index] for index in planned.rows], packing, pad_token_id), device)
        for name, values in score(batch).items():
            column = table.setdefault(name, torch.zeros(offsets[-1], device=device))
            if planned.counted:
                sizes = [offsets[index + 1] - offsets[index] for index in planned.rows]
                for index, part in zip(planned.rows, values.float().split(sizes), strict=True):
                    column[offsets[index] : offsets[index + 1]] = part
    names = sorted(table)
    values = sum_over_ranks(torch.stack([table[name] for name in names]))
    return dict(zip(names, values.cpu().double(), strict=True))
