"""Contrastive preference optimisation (CPO, arXiv 2401.08417): DPO against a uniform reference, plus imitation."""

from collections.abc import Callable
from typing import Annotated, Concatenate

from pydantic import Field
from torch import Tensor

from alignlab.losses.preference import Pairs, sft
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import free_pairs, pair_metrics, pair_term
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference


class CPO(Method):
    """Minimise a pair loss of the policy alone and the negative log-likelihood of the chosen (eq. 3 and 5).

    Args:
        beta: Scale of the log-probabilities.
        loss: Losses by name, each ``(pairs, *, beta)`` → one loss per pair; they are summed.
        sft_weight: Weight of the chosen completions' likelihood per token.
        factories: See ``Method``.
    """

    row_kind = Preference

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: dict[str, Callable[Concatenate[Pairs, ...], Tensor | LossTerm]],
        sft_weight: Annotated[float, Field(ge=0)],
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.beta, self.losses, self.sft_weight = beta, loss, sft_weight

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses per pair, and the likelihood per token of the chosen."""
        pairs = free_pairs(token_scores(self.policy, batch).logps, batch)
        terms = [pair_term(loss(pairs, beta=self.beta)) for loss in self.losses.values()]
        return LossOutput([*terms, sft(pairs, beta=self.beta) * self.sft_weight], pair_metrics(pairs, self.beta))
