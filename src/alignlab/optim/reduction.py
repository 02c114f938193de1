"""Reduction: each sum is divided by the count of its unit in the whole optimizer step, over micro-batches and ranks.

The mean of the means of micro-batches depends on how a step is split. Here every method and strategy divides once, so
that 1 x 8, 2 x 4 and 8 x 1 micro-batches on any number of ranks give the same gradient.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from alignlab.distributed.comm import num_ranks
from alignlab.types.batch import StepTotals
from alignlab.types.loss import LossOutput, LossTerm


def step_loss(terms: Sequence[LossTerm], totals: StepTotals, counted: int) -> Tensor:
    """A micro-batch's part of the step's loss; the gradients of all parts accumulate to that of the step's loss.

    Args:
        terms: Terms of the method's loss.
        totals: Counts of the whole step over all ranks.
        counted: 0 for a filler micro-batch.

    Returns:
        Multiplied by the number of ranks, because data-parallel strategies average gradients. Shape ``[]``.

    Raises:
        InputError: A term has a unit that a step does not count.
    """
    return counted * num_ranks() * sum(term.sum * _inverse(totals.count(term.unit)) for term in terms)


def _inverse(count: float) -> float:
    """1 / count, or 0 if the count is 0."""
    return 1 / count if count else 0.0


class RunningMeans:
    """Loss and metrics of one step, or of all steps of a validation, over micro-batches and ranks."""

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._steps: list[StepTotals] = []
        self._metrics: dict[str, Tensor] = {}

    def add(self, output: LossOutput, counted: int = 1) -> None:
        """Add the sums of a micro-batch; ``counted`` is 0 for a filler."""
        for term in output.terms:
            _add(self._losses, term.unit, term.sum.detach().double() * counted)
        for name, ratio in output.metrics.items():
            pair = torch.stack([ratio.sum.detach().double(), ratio.weight.detach().double()])
            _add(self._metrics, name, pair * counted)

    def close_step(self, totals: StepTotals) -> None:
        """Add the counts of the step whose micro-batches have been added."""
        self._steps.append(totals)

    def means(self) -> dict[str, Tensor]:
        """Compute ``loss`` and the mean of each metric over all ranks, each ``[]``, and reset the sums.

        Metrics with a weight of 0 are left out, and the loss if no term was added.
        """
        names, units = sorted(self._metrics), sorted(self._losses)
        if not names and not units:
            return {}
        table = torch.stack([self._losses[unit] for unit in units] + [x for name in names for x in self._metrics[name]])
        if dist.is_initialized():
            dist.all_reduce(table)
        losses, pairs = table[: len(units)], table[len(units) :].view(-1, 2)
        counts = [sum(totals.count(unit) for totals in self._steps) for unit in units]
        loss = sum(total * _inverse(count) for total, count in zip(losses, counts, strict=True))
        self._reset()
        metrics = {name: total / weight for name, (total, weight) in zip(names, pairs, strict=True) if weight > 0}
        return {"loss": loss, **metrics} if units else metrics


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
