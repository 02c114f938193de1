"""Simple preference optimisation (SimPO, arXiv 2405.14734): log-probabilities per token, a margin, no reference."""

from typing import Annotated

from pydantic import Field

from alignlab.losses.preference import sft
from alignlab.losses.simpo import simpo
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import free_pairs, pair_metrics
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference


class SimPO(Method):
    """Minimise SimPO's loss (eq. 6), optionally with the likelihood of the chosen.

    Args:
        beta: Scale of the rewards.
        margin: By which the chosen must lead (the paper's γ).
        alpha: Bends the rewards (AlphaPO, arXiv 2501.03884); 0: SimPO's own.
        label_smoothing: Share of labels taken for wrong.
        sft_weight: Weight of the chosen completions' likelihood per token (CPO-SimPO).
        factories: See ``Method``.
    """

    row_kind = Preference

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        margin: Annotated[float, Field(ge=0)],
        alpha: float,
        label_smoothing: Annotated[float, Field(ge=0, lt=0.5)],
        sft_weight: Annotated[float, Field(ge=0)],
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.settings = {"beta": beta, "margin": margin, "alpha": alpha, "label_smoothing": label_smoothing}
        self.sft_weight = sft_weight

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses per pair, and the likelihood per token of the chosen."""
        pairs = free_pairs(token_scores(self.policy, batch).logps, batch)
        terms = [LossTerm(simpo(pairs, **self.settings), "pairs"), sft(pairs, beta=1.0) * self.sft_weight]
        return LossOutput(terms, pair_metrics(pairs, self.settings["beta"]))
