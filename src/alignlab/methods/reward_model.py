"""Reward model: trained on preferences to give chosen completions a higher reward than rejected ones."""

from typing import Annotated

from pydantic import Field

from alignlab.losses.bradley_terry import bradley_terry
from alignlab.methods.base import Factories, Method
from alignlab.models.scoring import sequence_scores
from alignlab.optim.rates import REWARD_MODEL
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput
from alignlab.types.rows import Preference


class RewardModel(Method):
    """Maximise the likelihood of the preferences under the Bradley-Terry model.

    Args:
        margin_column: Numeric column with the margin of each row; ``None`` for 0.
        weight_column: Numeric column with the weight of each row; ``None`` for 1.
        centring: Weight of the squared sum of the rewards of a pair, which keeps the mean reward near zero.
        factories: See ``Method``.
    """

    row_kind = Preference
    learning_rates = REWARD_MODEL
    head = "reward"
    number_columns = ("margin_column", "weight_column")

    def __init__(
        self,
        *,
        margin_column: str | None,
        weight_column: str | None,
        centring: Annotated[float, Field(ge=0)],
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.margin_column, self.weight_column, self.centring = margin_column, weight_column, centring

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The losses of all pairs."""
        return bradley_terry(
            sequence_scores(self.policy, batch),
            batch.group_ids,
            margins=batch.columns[self.margin_column] if self.margin_column else None,
            weights=batch.columns[self.weight_column] if self.weight_column else None,
            centring=self.centring,
        )
