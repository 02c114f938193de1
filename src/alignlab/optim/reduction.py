"""The one reducer: each sum divided by its unit's count in the whole optimizer step, over micro-batches and ranks.

Means of micro-batch means are not the mean: they depend on how a step is cut. Here every method and strategy divides
in this place, once, so 1 x 8, 2 x 4 and 8 x 1 micro-batches on one or more ranks have the same gradient.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from alignlab.distributed.comm import num_ranks
from alignlab.types.batch import StepTotals
from alignlab.types.loss import LossOutput, LossTerm


def step_loss(terms: Sequence[LossTerm], totals: StepTotals, counted: int) -> Tensor:
    """The share of a micro-batch in the step's loss; its backward accumulates to the gradient of that loss.

    Args:
        terms: What the method's loss returned.
        totals: Counts of the whole step over all ranks.
        counted: 0 for a filler micro-batch.

    Returns:
        Scalar, multiplied by the number of ranks because data-parallel strategies average gradients. Shape ``[]``.

    Raises:
        InputError: A term has a unit that a step does not count.
    """
    return counted * num_ranks() * sum(term.sum * _inverse(totals.count(term.unit)) for term in terms)


def _inverse(count: float) -> float:
    """1 / count; 0 where there is nothing to take a mean of."""
    return 1 / count if count else 0.0


class RunningMeans:
    """The loss and the metrics of one step, or of all steps of a validation, over micro-batches and ranks."""

    def __init__(self):
        self._start()

    def _start(self) -> None:
        self._losses: dict[str, Tensor] = {}
        self._steps: list[StepTotals] = []
        self._metrics: dict[str, Tensor] = {}

    def add(self, output: LossOutput, counted: int = 1) -> None:
        """Add the sums of a micro-batch; 0 for a filler."""
        for term in output.terms:
            _add(self._losses, term.unit, term.sum.detach().double() * counted)
        for name, ratio in output.metrics.items():
            pair = torch.stack([ratio.sum.detach().double(), ratio.weight.detach().double()])
            _add(self._metrics, name, pair * counted)

    def close_step(self, totals: StepTotals) -> None:
        """Add the counts of the step whose micro-batches were added."""
        self._steps.append(totals)

    def means(self) -> dict[str, Tensor]:
        """``loss`` and the mean of each metric over all ranks, each ``[]``; then the sums start anew.

        Metrics without any weight are left out, and the loss where nothing was added.
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
        self._start()
        metrics = {name: total / weight for name, (total, weight) in zip(names, pairs, strict=True) if weight > 0}
        return {"loss": loss, **metrics} if units else metrics


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
