"""Direct preference optimisation (arXiv 2305.18290) and its family: raise the chosen above the rejected.

1. A row with K rejected completions is K pairs; prompt and chosen are computed once.
2. Losses may be summed with weights (MPO, arXiv 2411.10442); each is a mean over the whole step.
"""

from collections.abc import Callable
from typing import Annotated, Concatenate, Literal

from pydantic import Field
from torch import Tensor

from alignlab.errors import InputError
from alignlab.losses.logps import desensitised_sums, pair_index, sequence_sums, token_counts
from alignlab.losses.preference import Pairs, wpo_weights
from alignlab.methods.base import Factories, Method
from alignlab.methods.pairs import pair_metrics, pair_term
from alignlab.methods.reference import ReferencePolicy, ReferenceSettings
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Preference

PairLoss = Callable[Concatenate[Pairs, ...], Tensor | LossTerm]


class DPO(Method):
    """Minimise losses of pairs.

    Args:
        beta: Strength of the pull towards the reference.
        loss: Losses by name, each ``(pairs, *, beta)`` → one loss per pair, or a term; see ``losses.preference``.
        loss_weights: Their weights, in their order; ``None`` for 1 each.
        divergence: Log-ratio → score; see ``losses.divergence``.
        length_desensitisation: What tokens past the pair's shorter completion count (LD-DPO, arXiv 2409.06411).
        weighting: ``wpo`` weighs a pair by how likely it is the policy's own (arXiv 2406.11827).
        reference: What the policy is compared with.
        factories: See ``Method``.
    """

    row_kind = Preference

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)],
        loss: dict[str, PairLoss],
        loss_weights: list[float] | None,
        divergence: Callable[[Tensor], Tensor],
        length_desensitisation: Annotated[float, Field(ge=0, le=1)],
        weighting: Literal["none", "wpo"],
        reference: ReferenceSettings,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.reference = ReferencePolicy(reference, factories.open_model)
        self.beta, self.losses, self.divergence = beta, loss, divergence
        self.loss_weights = name_weights(loss, loss_weights)
        self.length_desensitisation, self.weighting = length_desensitisation, weighting
        if reference.precompute_reference and length_desensitisation < 1:
            raise InputError(
                f"method.precompute_reference=true with method.length_desensitisation={length_desensitisation}",
                "it weighs the reference's single tokens, and only sums over whole completions are kept",
                "Type method.precompute_reference=false",
            )

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Weighted sum of the losses of all pairs."""
        scores = token_scores(self.policy, batch, want=("log_collisions",) if self.weighting == "wpo" else ())
        pairs = self._pairs(scores.logps, batch)
        terms = [pair_term(self.losses[name](pairs, beta=self.beta)) * w for name, w in self.loss_weights.items()]
        if self.weighting == "wpo":
            index = pair_index(batch.group_ids)
            likely = wpo_weights(scores.logps, scores.log_collisions, batch.sequence_ids, batch.num_sequences)
            terms = [term * (likely[index.chosen] + likely[index.rejected]).exp() for term in terms]
        return LossOutput(terms, pair_metrics(pairs, self.beta))

    def _pairs(self, token_logps: Tensor, batch: MicroBatch) -> Pairs:
        index, num_sequences = pair_index(batch.group_ids), batch.num_sequences
        tokens = token_counts(batch.sequence_ids, num_sequences, token_logps.dtype)
        if self.length_desensitisation == 1.0:
            logps = sequence_sums(token_logps, batch.sequence_ids, num_sequences)
            sides = (*self._sides(logps, index), *self._sides(self.reference.logps(batch), index))
        else:
            cut = (batch.sequence_ids, num_sequences, index, self.length_desensitisation)
            reference = self.reference.token_logps(batch)
            sides = (*desensitised_sums(token_logps, *cut), *desensitised_sums(reference, *cut))
        return Pairs(*sides, tokens[index.chosen], tokens[index.rejected], self.divergence)

    @staticmethod
    def _sides(values: Tensor, index) -> tuple[Tensor, Tensor]:
        return values[index.chosen], values[index.rejected]


def name_weights(losses: dict[str, PairLoss], weights: list[float] | None) -> dict[str, float]:
    """The weight of each loss by its name."""
    return dict(zip(losses, [1.0] * len(losses) if weights is None else weights, strict=True))
