"""Simple preference optimisation (SimPO, arXiv 2405.14734): length-normalised log-probs, a margin, no reference."""

from typing import Annotated

from pydantic import Field

from alignlab.losses.preference import sft
from alignlab.losses.simpo import simpo
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import pair_metrics, reference_free_pairs, weigh_pairs
from alignlab.models.scoring import token_scores
from alignlab.optim.rates import FROM_COMPARISONS
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference


class SimPO(Method):
    """Minimise the SimPO loss (eq. 6), optionally plus the negative log-likelihood of the chosen.

    Args:
        beta: Scale of the rewards.
        margin: Target reward margin (γ in the paper).
        alpha: Shape of the reward (AlphaPO, arXiv 2501.03884); 0 for that of SimPO.
        label_smoothing: Probability that a label is flipped.
        sft_weight: Weight of the negative log-likelihood of the chosen, a mean over tokens (CPO-SimPO).
        weight_column: Numeric column with the weight of each row; ``None`` for 1 each.
        factories: See ``Method``.
    """

    row_kind = Preference
    learning_rates = FROM_COMPARISONS
    number_columns = ("weight_column",)

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        margin: Annotated[float, Field(ge=0)],
        alpha: float,
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)],
        sft_weight: Annotated[float, Field(ge=0)],
        weight_column: str | None,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.settings = {"beta": beta, "margin": margin, "alpha": alpha, "label_smoothing": label_smoothing}
        self.sft_weight, self.weight_column = sft_weight, weight_column

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The loss per pair, plus the negative log-likelihood of the chosen."""
        pairs = reference_free_pairs(token_scores(self.policy, batch).logps, batch)
        terms = [LossTerm(simpo(pairs, **self.settings), "pairs"), sft(pairs, beta=1.0) * self.sft_weight]
        terms = weigh_pairs(terms, batch, self.weight_column)
        return LossOutput(terms, pair_metrics(pairs, self.settings["beta"]))
