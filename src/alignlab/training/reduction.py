"""The one reducer: sums divided by the weight of the whole optimizer step, over all micro-batches and ranks.

Means of micro-batch means are not the mean: they depend on how a step is cut. Here every method and strategy divides
in this place, once, so 1 x 8, 2 x 4 and 8 x 1 micro-batches on one or more ranks have the same gradient.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from alignlab.batches import LossOutput, Ratio
from alignlab.crew import num_ranks


def step_loss(output: LossOutput, total_weight: float, counted: int) -> Tensor:
    """The share of a micro-batch in the step's mean loss; its backward accumulates to the gradient of that mean.

    Args:
        output: What the method's loss returned.
        total_weight: Weight of the whole step over all ranks, positive.
        counted: 0 for a filler micro-batch.

    Returns:
        Scalar, multiplied by the number of ranks because data-parallel strategies average gradients. Shape ``[]``.
    """
    return output.sum * (counted * num_ranks() / total_weight)


class RunningRatios:
    """Sums and weights by name, gathered over micro-batches and then over ranks."""

    def __init__(self):
        self._pairs: dict[str, Tensor] = {}

    def add(self, ratios: Mapping[str, Ratio], counted: int = 1) -> None:
        """Add the sums and weights of a micro-batch."""
        for name, ratio in ratios.items():
            pair = torch.stack([ratio.sum.detach().double(), ratio.weight.detach().double()]) * counted
            self._pairs[name] = self._pairs[name] + pair if name in self._pairs else pair

    def means(self) -> dict[str, Tensor]:
        """Mean of each name over all ranks; names without any weight are left out, and the sums start anew."""
        names = sorted(self._pairs)
        if not names:
            return {}
        table = torch.stack([self._pairs[name] for name in names])
        if dist.is_initialized():
            dist.all_reduce(table)
        self._pairs = {}
        return {name: total / weight for name, (total, weight) in zip(names, table, strict=True) if weight > 0}
