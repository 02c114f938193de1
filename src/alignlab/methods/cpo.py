"""Contrastive preference optimisation (CPO, arXiv 2401.08417): DPO against a uniform reference, plus imitation."""

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from torch import Tensor

from alignlab.batches import LossOutput, MicroBatch, Preference, StepTotals
from alignlab.losses.preference import sft
from alignlab.methods.base import Method
from alignlab.methods.pairs import free_pairs, pair_metrics
from alignlab.models.scoring import token_scores


class CPO(Method):
    """Minimise a pair loss of the policy alone and the negative log-likelihood of the chosen (eq. 3 and 5).

    Args:
        beta: Scale of the log-probabilities.
        loss: Losses by name, each ``(pairs, *, beta)`` → one loss per pair; they are summed.
        sft_weight: Weight of the chosen completions' likelihood per token.
        parts: See ``Method``.
    """

    eats = Preference

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: dict[str, Callable[..., Tensor]],
        sft_weight: Annotated[float, Field(ge=0)],
        **parts,
    ):
        super().__init__(**parts)
        self.beta, self.losses, self.sft_weight = beta, loss, sft_weight

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Mean over pairs, and of the likelihood over tokens."""
        pairs = free_pairs(token_scores(self.policy, batch).logps, batch)
        losses = sum(loss(pairs, beta=self.beta) for loss in self.losses.values())
        losses = losses + self.sft_weight * sft(pairs, beta=self.beta)
        return LossOutput(losses.sum(), losses.new_tensor(losses.numel()), pair_metrics(pairs, self.beta))

    def total_weight(self, totals: StepTotals) -> float:
        """Pairs of the step."""
        return totals.pairs
