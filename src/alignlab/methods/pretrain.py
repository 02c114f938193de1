"""Pretraining: next-token prediction on plain text."""

from alignlab.losses.sft import token_metrics
from alignlab.methods.base import Method
from alignlab.models.scoring import token_scores
from alignlab.optim.rates import PRETRAINING
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Text


class Pretrain(Method):
    """Minimise the negative log-likelihood of all tokens but the first of each document."""

    row_kind = Text
    keeps_dropout = True
    learning_rates = PRETRAINING

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The negative log-likelihood of each token."""
        scores = token_scores(self.policy, batch)
        return LossOutput(
            [LossTerm(-scores.logps, "supervised_tokens")], token_metrics(scores.logps, scores.argmax_correct)
        )
