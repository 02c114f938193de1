"""Values of tokens that must be known before learning begins, computed by all ranks together."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignlab.data.batching.collate import collate, count_targets
from alignlab.data.batching.plan import plan_step
from alignlab.data.datamodule import DataModule
from alignlab.distributed.comm import all_gather, num_ranks, rank
from alignlab.types.batch import MicroBatch, move
from alignlab.types.rows import TokenRow

Score = Callable[[MicroBatch], dict[str, Tensor]]
"""Micro-batch → values of its supervised tokens, each ``[N]``."""


@torch.no_grad()
def annotate(rows: Sequence[TokenRow], score: Score, data: DataModule, device: torch.device) -> list[TokenRow]:
    """The same rows with more token columns.

    Args:
        rows: The same on all ranks.
        score: Every rank calls it equally often.
        data: Whose limits of a micro-batch and layout are used.
        device: Where ``score`` wants its micro-batches.
    """
    found: dict[int, dict[str, list[float]]] = {}
    for planned in plan_step([len(row.tokens) for row in rows], data.plan, num_ranks())[rank()]:
        chosen = [rows[index] for index in planned.rows]
        batch = move(collate(chosen, data.load.packing, data.tokenizer.pad_token_id or 0), device)
        sizes = [count_targets(row) for row in chosen]
        by_name = {name: values.float().cpu().split(sizes) for name, values in score(batch).items()}
        for place, index in enumerate(planned.rows):
            found[index] = {name: parts[place].tolist() for name, parts in by_name.items()}
    found = {index: values for one in all_gather(found) for index, values in one.items()}
    return [replace(row, token_columns=row.token_columns | found[index]) for index, row in enumerate(rows)]
