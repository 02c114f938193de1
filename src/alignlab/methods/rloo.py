"""REINFORCE leave-one-out (RLOO, arXiv 2402.14740): each completion against the mean reward of the others.

1. The ratio of whole completions is clipped as PPO clips that of tokens; on policy it is 1, and the loss the paper's.
2. The divergence from the reference is taken off the reward (``reward_kl_coef``), k1 summed over the completion.
"""

from collections.abc import Callable
from typing import Literal

from alignlab.losses.advantages import estimate
from alignlab.losses.kl import penalise_rewards
from alignlab.losses.normaliser import normalise
from alignlab.losses.policy_gradient import PolicyLoss, policy_metrics
from alignlab.methods.online import Online
from alignlab.rollout.groups import Rollout
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput
from alignlab.types.rows import TokenRow


class RLOO(Online):
    """Minimise the policy gradient's surrogate with a leave-one-out baseline (eq. 9).

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        scale: What advantages are divided by: none, batch or whiten.
        factories: See ``Online``.
    """

    def __init__(
        self, *, loss: Callable[..., PolicyLoss], scale: Literal["none", "batch", "whiten"], reference: str, **factories
    ):
        super().__init__(reference=reference if factories["reward_kl_coef"] > 0 else "none", **factories)
        self.loss, self.scale = loss, scale

    def learnable(self, rollout: Rollout) -> list[TokenRow]:
        """Rewards less the divergence, against the others of the group."""
        kl = self.token_kl(rollout)
        rewards = penalise_rewards(rollout.columns["reward"], kl, rollout.sequence_ids, kl_coef=self.reward_kl_coef)
        return rollout.with_columns(advantages=estimate(rewards, rollout.group_ids, estimator="rloo", scale=self.scale))

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Mean over the completions of the step, of the means over their tokens."""
        tokens = self.policy_tokens(batch, batch.columns["advantages"][batch.sequence_ids])
        loss = self.loss(tokens)
        term = normalise(loss.losses, tokens.sequence_ids, tokens.num_sequences, "sequence")
        return LossOutput([term], policy_metrics(tokens, loss))
