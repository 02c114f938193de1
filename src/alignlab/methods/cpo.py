"""Contrastive preference optimisation (CPO, arXiv 2401.08417): DPO with a uniform reference, plus an SFT loss."""

from collections.abc import Callable
from typing import Annotated, Concatenate

from pydantic import Field
from torch import Tensor

from alignlab.losses.preference import Pairs, sft
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import pair_metrics, pair_term, reference_free_pairs
from alignlab.models.scoring import token_scores
from alignlab.optim.rates import FROM_COMPARISONS
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference


class CPO(Method):
    """Minimise a preference loss without a reference, plus the negative log-likelihood of the chosen (eq. 3 and 5).

    Args:
        beta: Scale of the log-probs.
        loss: Losses by name, each ``(pairs, *, beta)`` → one loss per pair; they are summed.
        sft_weight: Weight of the negative log-likelihood of the chosen, a mean over tokens.
        factories: See ``Method``.
    """

    row_kind = Preference
    learning_rates = FROM_COMPARISONS

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
        """The losses per pair, plus the negative log-likelihood of the chosen."""
        pairs = reference_free_pairs(token_scores(self.policy, batch).logps, batch)
        terms = [pair_term(loss(pairs, beta=self.beta)) for loss in self.losses.values()]
        return LossOutput([*terms, sft(pairs, beta=self.beta) * self.sft_weight], pair_metrics(pairs, self.beta))
