"""Contrastive preference optimisation (CPO, arXiv 2401.08417): DPO with a uniform reference, plus an SFT loss."""

from collections.abc import Callable
from typing import Annotated, Concatenate

from pydantic import Field
from torch import Tensor

from alignlab.losses.preference import Pairs, sft
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import pair_metrics, pair_term, reference_free_pairs, refuse_sorted, weigh_pairs
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
        loss: dict[str, Callable[Concatenate[Pairs, ...], Tensor | LossTerm]],
        sft_weight: Annotated[float, Field(ge=0)],
        weight_column: str | None,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        if weight_column is not None:
            refuse_sorted(f"method.weight_column={weight_column}", loss, "method.weight_column=null")
        self.beta, self.losses, self.sft_weight, self.weight_column = beta, loss, sft_weight, weight_column

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The losses per pair, plus the negative log-likelihood of the chosen."""
        pairs = reference_free_pairs(token_scores(self.policy, batch).logps, batch)
        terms = [pair_term(loss(pairs, beta=self.beta)) for loss in self.losses.values()]
        terms += [sft(pairs, beta=self.beta) * self.sft_weight]
        return LossOutput(weigh_pairs(terms, batch, self.weight_column), pair_metrics(pairs, self.beta))
