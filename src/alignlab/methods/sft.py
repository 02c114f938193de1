"""Supervised fine-tuning (SFT) on the assistant turns of dialogues."""

from collections.abc import Callable
from typing import Annotated, Concatenate

from pydantic import Field
from torch import Tensor

from alignlab.losses.logps import segment_sums, token_counts
from alignlab.losses.sft import Reduction, SupervisedTokens, token_metrics
from alignlab.methods.base import Factories, Method
from alignlab.models.neftune import add_embedding_noise
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Demonstration


class SFT(Method):
    """Minimise a loss over the supervised tokens.

    Args:
        loss: ``(tokens, *, reduction)`` → ``LossTerm``; one of ``losses.sft``.
        reduction: ``token``: mean over the supervised tokens of the step; ``sequence``: mean over dialogues.
        weight_column: Numeric column with the weight of each row; ``None`` for 1 each.
        neftune_alpha: Scale of uniform noise on the embeddings in training (NEFTune, arXiv 2310.05914); 0 for none.
        factories: See ``Method``.
    """

    row_kind = Demonstration
    keeps_dropout = True
    number_columns = ("weight_column",)
    weighs_turns = True

    def __init__(
        self,
        *,
        loss: Callable[Concatenate[SupervisedTokens, ...], LossTerm],
        reduction: Reduction,
        weight_column: str | None,
        neftune_alpha: Annotated[float, Field(ge=0)],
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.loss = loss
        self.reduction, self.weight_column = reduction, weight_column
        self.neftune_alpha = neftune_alpha

    def configure_model(self) -> None:
        """Build the policy, and add NEFTune noise if it is set."""
        if self.policy is None:
            super().configure_model()
            add_embedding_noise(self.policy, self.neftune_alpha)

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The loss per supervised token, or per sequence."""
        scores = token_scores(self.policy, batch)
        tokens = SupervisedTokens(scores.logps, batch.sequence_ids, batch.num_sequences)
        term = self.loss(tokens, reduction=self.reduction)
        weights = self._weights(batch)
        term = term if weights is None else term * weights
        return LossOutput([term], token_metrics(scores.logps, scores.argmax_correct))

    def _weights(self, batch: MicroBatch) -> Tensor | None:
        """Weight of each supervised token, by its turn and its row; ``None`` if all are 1. Shape ``[N]``."""
        weights = batch.turn_weights
        if weights is not None and self.reduction == "sequence":
            # Within a dialogue only the ratios of the weights matter: their mean becomes 1.
            ids, count = batch.sequence_ids, batch.num_sequences
            means = segment_sums(weights, ids, count) / token_counts(ids, count, weights.dtype)
            weights = weights / means[ids]
        if self.weight_column is None:
            return weights
        rows = batch.columns[self.weight_column][batch.sequence_ids]
        return rows if weights is None else weights * rows
