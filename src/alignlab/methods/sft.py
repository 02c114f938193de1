"""Supervised fine-tuning (SFT) on the assistant turns of dialogues."""

from collections.abc import Callable
from typing import Annotated, Concatenate

from pydantic import Field

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
        neftune_alpha: Scale of uniform noise on the embeddings in training (NEFTune, arXiv 2310.05914); 0 for none.
        factories: See ``Method``.
    """

    row_kind = Demonstration
    keeps_dropout = True

    def __init__(
        self,
        *,
        loss: Callable[Concatenate[SupervisedTokens, ...], LossTerm],
        reduction: Reduction,
        neftune_alpha: Annotated[float, Field(ge=0)],
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.loss = loss
        self.reduction = reduction
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
        return LossOutput([term], token_metrics(scores.logps, scores.argmax_correct))
