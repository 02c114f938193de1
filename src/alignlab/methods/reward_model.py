"""A reward model from comparisons: one number per completion, higher for what is preferred."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from alignlab.batches import LossOutput, MicroBatch, Preference, StepTotals
from alignlab.errors import InputError, nearest
from alignlab.losses.bradley_terry import bradley_terry
from alignlab.methods.base import Method
from alignlab.models.scoring import sequence_scores


class RewardModel(Method):
    """Maximise the likelihood of the comparisons under Bradley and Terry's model.

    Args:
        margin_column: Numeric column: by how much the chosen must lead; ``None`` for 0.
        weight_column: Numeric column: how often a row counts; ``None`` for 1.
        centring: Weight of the squared sum of a pair's rewards, which holds their mean near zero.
        parts: See ``Method``.
    """

    eats = Preference
    head = "reward"

    def __init__(
        self,
        *,
        margin_column: str | None,
        weight_column: str | None,
        centring: Annotated[float, Field(ge=0)],
        **parts,
    ):
        super().__init__(**parts)
        self.margin_column, self.weight_column, self.centring = margin_column, weight_column, centring

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Sum over the pairs of the micro-batch."""
        return bradley_terry(
            sequence_scores(self.policy, batch),
            batch.tree,
            margins=column(batch, "margin_column", self.margin_column),
            weights=column(batch, "weight_column", self.weight_column),
            centring=self.centring,
        )

    def total_weight(self, totals: StepTotals) -> float:
        """Pairs of the step."""
        return totals.pairs


def column(batch: MicroBatch, setting: str, name: str | None) -> Tensor | None:
    """A numeric column of the rows by its name. Shape ``[S]``.

    Raises:
        InputError: Not every row of the micro-batch has it.
    """
    if name is None or name in batch.numbers:
        return batch.numbers.get(name)
    why = "the rows have no such numeric column, or not all of them"
    raise InputError(f"method.{setting}={name}", why, nearest(name, batch.numbers))
