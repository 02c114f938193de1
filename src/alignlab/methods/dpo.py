"""Direct preference optimisation (DPO, arXiv 2305.18290) and its variants.

    -log σ(β (log π(y_c|x) - log π_ref(y_c|x)) - β (log π(y_r|x) - log π_ref(y_r|x)))        (eq. 7)

The loss raises the log-prob of the chosen completion y_c over that of the rejected y_r, relative to the reference. See
``losses.preference`` for the variants.

1. A row with K rejected completions gives K pairs; its prompt and chosen completion are computed once.
2. Several losses may be summed with weights (MPO, arXiv 2411.10442); each is a mean over the whole step.
"""

from collections.abc import Callable
from typing import Annotated, Concatenate, Literal

from pydantic import Field
from torch import Tensor

from alignlab.errors import InputError
from alignlab.losses.logps import desensitised_sums, pair_index, segment_sums, token_counts
from alignlab.losses.preference import Pairs, wpo_weights
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import pair_metrics, pair_term, refuse_sorted, weigh_pairs
from alignlab.methods.reference import ReferencePolicy, ReferenceSettings
from alignlab.models.scoring import token_scores
from alignlab.optim.rates import FROM_COMPARISONS
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference

PairLoss = Callable[Concatenate[Pairs, ...], Tensor | LossTerm]


class DPO(Method):
    """Minimise the weighted sum of one or more preference losses.

    Args:
        beta: Scale of the log-ratios; a larger one keeps the policy closer to the reference.
        loss: Losses by name, each ``(pairs, *, beta)`` → one loss per pair, or a ``LossTerm``; see
            ``losses.preference``.
        loss_weights: Weights in the same order; ``None`` for 1 each.
        divergence: Log-ratio → score; see ``losses.divergence``.
        length_desensitisation: Weight of tokens beyond the pair's shorter completion (LD-DPO, arXiv 2409.06411).
        weighting: ``wpo`` weights pairs by the probability that the policy samples them (WPO, arXiv 2406.11827).
        weight_column: Numeric column with the weight of each row; ``None`` for 1 each.
        reference: Settings of the reference.
        factories: See ``Method``.
    """

    row_kind = Preference
    learning_rates = FROM_COMPARISONS
    number_columns = ("weight_column",)

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: dict[str, PairLoss],
        loss_weights: list[float] | None,
        divergence: Callable[[Tensor], Tensor],
        length_desensitisation: Annotated[float, Field(ge=0, le=1)],
        weighting: Literal["none", "wpo"],
        weight_column: str | None,
        reference: ReferenceSettings,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.reference = ReferencePolicy(reference, factories.open_model)
        self.beta, self.losses, self.divergence = beta, loss, divergence
        self.loss_weights = name_weights(loss, loss_weights)
        if weighting == "wpo":
            refuse_sorted("method.weighting=wpo", loss, "method.weighting=none")
        if weight_column is not None:
            refuse_sorted(f"method.weight_column={weight_column}", loss, "method.weight_column=null")
        self.weight_column = weight_column
        self.length_desensitisation, self.weighting = length_desensitisation, weighting
        if reference.precompute_reference and length_desensitisation < 1:
            raise InputError(
                f"method.precompute_reference=true with method.length_desensitisation={length_desensitisation}",
                "it needs the reference log-probs of single tokens, and only sums over completions are precomputed",
                "Type method.precompute_reference=false",
            )

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The weighted losses of all pairs."""
        scores = token_scores(self.policy, batch, want=("log_collisions",) if self.weighting == "wpo" else ())
        pairs = self._pairs(scores.logps, batch)
        terms = [pair_term(self.losses[name](pairs, beta=self.beta)) * w for name, w in self.loss_weights.items()]
        if self.weighting == "wpo":
            index = pair_index(batch.group_ids)
            log_weights = wpo_weights(scores.logps, scores.log_collisions, batch.sequence_ids, batch.num_sequences)
            terms = [term * (log_weights[index.chosen] + log_weights[index.rejected]).exp() for term in terms]
        return LossOutput(weigh_pairs(terms, batch, self.weight_column), pair_metrics(pairs, self.beta))

    def _pairs(self, token_logps: Tensor, batch: MicroBatch) -> Pairs:
        index, num_sequences = pair_index(batch.group_ids), batch.num_sequences
        tokens = token_counts(batch.sequence_ids, num_sequences, token_logps.dtype)
        if self.length_desensitisation == 1.0:
            logps = segment_sums(token_logps, batch.sequence_ids, num_sequences)
            sums = (*self._split(logps, index), *self._split(self.reference.logps(batch), index))
        else:
            options = (batch.sequence_ids, num_sequences, index, self.length_desensitisation)
            reference = self.reference.token_logps(batch)
            sums = (*desensitised_sums(token_logps, *options), *desensitised_sums(reference, *options))
        return Pairs(*sums, tokens[index.chosen], tokens[index.rejected], self.divergence)

    @staticmethod
    def _split(values: Tensor, index) -> tuple[Tensor, Tensor]:
        return values[index.chosen], values[index.rejected]


def name_weights(losses: dict[str, PairLoss], weights: list[float] | None) -> dict[str, float]:
    """Weights by the names of the losses."""
    return dict(zip(losses, [1.0] * len(losses) if weights is None else weights, strict=True))
