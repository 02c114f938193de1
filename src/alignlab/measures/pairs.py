"""How often a reward model prefers the chosen completion."""

from collections.abc import Iterable

import torch
from torch import nn

from alignlab.losses.logps import pair_index
from alignlab.measures.batches import row_of_sequence, row_sums
from alignlab.models.scoring import sequence_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import Ratio
from alignlab.types.rows import TokenRow


@torch.no_grad()
def preferences(model: nn.Module, batches: Iterable[tuple[list[TokenRow], MicroBatch]]) -> dict[str, Ratio]:
    """Compare the chosen completion of each row with each rejected one.

    Args:
        model: A reward model in eval mode.
        batches: Of ``micro_batches``, of preference rows.

    Returns:
        ``pair_accuracy``, pairs whose chosen completion gets the higher reward, and ``margin``, for each row, ``[R]``.
    """
    columns: list[tuple[torch.Tensor, ...]] = []
    for rows, batch in batches:
        index = pair_index(batch.group_ids)
        rewards, row = sequence_scores(model, batch), row_of_sequence(rows)[index.rejected.cpu()]
        margins = rewards[index.chosen] - rewards[index.rejected]
        values = (margins > 0, margins, torch.ones_like(margins))
        columns.append(tuple(row_sums(one, row, len(rows)) for one in values))
    right, margins, pairs = (torch.cat(column) for column in zip(*columns, strict=True))
    return {"pair_accuracy": Ratio(right, pairs), "margin": Ratio(margins, pairs)}
