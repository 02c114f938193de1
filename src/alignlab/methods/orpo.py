"""Odds-ratio preference optimisation (ORPO, arXiv 2403.07691): imitate the chosen, shun the rejected, no reference.

1. The likelihood is that of the completion, as in the paper's eq. 6; some implementations add the prompt.
"""

from typing import Annotated

from pydantic import Field

from alignlab.losses.odds_ratio import odds_ratio
from alignlab.losses.preference import sft
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import free_pairs, pair_metrics
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference


class ORPO(Method):
    """Minimise L_SFT + β L_OR (eq. 6).

    Args:
        beta: Weight of the odds ratio (the paper's λ).
        factories: See ``Method``.
    """

    row_kind = Preference

    def __init__(self, *, beta: Annotated[float, Field(ge=0)], factories: Factories):
        super().__init__(factories=factories)
        self.beta = beta

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Likelihood per token of the chosen, and the odds ratio per pair."""
        pairs = free_pairs(token_scores(self.policy, batch).logps, batch)
        terms = [sft(pairs, beta=self.beta), LossTerm(self.beta * odds_ratio(pairs), "pairs")]
        return LossOutput(terms, pair_metrics(pairs, self.beta))
