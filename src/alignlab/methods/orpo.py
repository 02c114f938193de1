"""Odds ratio preference optimisation (ORPO, arXiv 2403.07691): an SFT loss plus an odds ratio loss, no reference.

The SFT loss covers the completion only, as in eq. 6; some implementations also train on the prompt.
"""

from typing import Annotated

from pydantic import Field

from alignlab.losses.odds_ratio import odds_ratio
from alignlab.losses.preference import sft
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import pair_metrics, reference_free_pairs, weigh_pairs
from alignlab.models.scoring import token_scores
from alignlab.optim.rates import FROM_COMPARISONS
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference


class ORPO(Method):
    """Minimise L_SFT + β L_OR (eq. 6).

    Args:
        beta: Weight of the odds ratio loss (λ in the paper).
        weight_column: Numeric column with the weight of each row; ``None`` for 1 each.
        factories: See ``Method``.
    """

    row_kind = Preference
    learning_rates = FROM_COMPARISONS
    number_columns = ("weight_column",)

    def __init__(self, *, beta: Annotated[float, Field(ge=0)], weight_column: str | None, factories: Factories):
        super().__init__(factories=factories)
        self.beta, self.weight_column = beta, weight_column

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The negative log-likelihood of the chosen, plus the odds ratio loss per pair."""
        pairs = reference_free_pairs(token_scores(self.policy, batch).logps, batch)
        terms = [sft(pairs, beta=self.beta), LossTerm(self.beta * odds_ratio(pairs), "pairs")]
        return LossOutput(weigh_pairs(terms, batch, self.weight_column), pair_metrics(pairs, self.beta))
