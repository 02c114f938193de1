"""Proximal policy optimisation (PPO, arXiv 1707.06347) of a language model (arXiv 2203.02155).

Each token is an action; its advantage comes from a critic by generalised advantage estimation (arXiv 1506.02438).

1. The score stands at a completion's last token, and each token pays for leaving the reference (``reward_kl_coef``).
2. Means are over all tokens of the optimizer step; advantages are whitened over the whole rollout.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from alignlab.losses.policy_gradient import PolicyLoss, policy_metrics
from alignlab.losses.value import explained_variance, gae, token_rewards, value_loss, value_metrics, whiten
from alignlab.methods.online import Online
from alignlab.models.critic import Critic
from alignlab.models.scoring import token_scores
from alignlab.rollout.groups import Rollout
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import TokenRow

Share = Annotated[float, Field(ge=0, le=1)]


class PPO(Online):
    """Minimise the clipped surrogate, and the critic's clipped error beside it.

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        critic: ``shared``: a head on the policy's hidden states; ``separate``: a model of its own.
        value_coef: Weight of the critic's loss.
        clip_value: How far from its old value a value still learns; ``None``: anywhere.
        gamma: Discount per token.
        gae_lambda: λ: 0 trusts the critic, 1 the rewards.
        whiten_rewards: Bring the rewards of tokens to variance 1 over the rollout.
        whiten_advantages: Bring advantages to mean 0 and variance 1 over the rollout.
        entropy_coef: Bonus per nat of entropy.
        factories: See ``Online``.
    """

    def __init__(
        self,
        *,
        loss: Callable[..., PolicyLoss],
        critic: Literal["shared", "separate"],
        value_coef: Annotated[float, Field(ge=0)],
        clip_value: Annotated[float, Field(gt=0)] | None,
        gamma: Share,
        gae_lambda: Share,
        whiten_rewards: bool,
        whiten_advantages: bool,
        entropy_coef: float,
        reference: str,
        **factories,
    ):
        super().__init__(reference=reference if factories["reward_kl_coef"] > 0 else "none", **factories)
        self.loss, self.critic_kind, self.critic = loss, critic, None
        self.value_coef, self.clip_value, self.entropy_coef = value_coef, clip_value, entropy_coef
        self.discount = {"gamma": gamma, "lam": gae_lambda}
        self.whiten_rewards, self.whiten_advantages = whiten_rewards, whiten_advantages

    def make_beside(self, policy: nn.Module) -> None:
        """The critic, beside the reference."""
        super().make_beside(policy)
        self.critic = Critic(policy, separate=self.critic_kind == "separate")

    def shard_beside(self) -> None:
        """Spread the critic too."""
        super().shard_beside()
        self.sharding.shard_beside(self.critic, trained=True)

    @property
    def trained_modules(self) -> tuple[nn.Module, ...]:
        """Policy and critic."""
        return (self.policy, self.critic)

    @property
    def scores_before(self) -> bool:
        """Values are always wanted."""
        return True

    def known_before(self, batch: MicroBatch) -> dict[str, Tensor]:
        """What the critic expects before it learns from the rollout, too."""
        return super().known_before(batch) | {"values": self._values(batch, token_scores(self.policy, batch).hidden)}

    def learnable(self, rollout: Rollout) -> list[TokenRow]:
        """Advantages and returns of tokens over the whole rollout."""
        sequence_ids, values = rollout.sequence_ids, rollout.token_columns["values"]
        scores = rollout.columns["reward"].nan_to_num(nan=0.0)
        rewards = token_rewards(scores, self.token_kl(rollout), sequence_ids, kl_coef=self.reward_kl_coef)
        rewards = whiten(rewards, shift=False) if self.whiten_rewards else rewards
        estimate = gae(rewards, values, sequence_ids, **self.discount)
        explained = explained_variance(values, estimate.returns)
        self.explained = {"explained_variance": float(explained.sum / explained.weight.clamp(min=1e-12))}
        advantages = whiten(estimate.advantages) if self.whiten_advantages else estimate.advantages
        return rollout.with_token_columns(advantages=advantages, returns=estimate.returns)

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Sums over tokens: the policy's surrogate, the critic's error, the entropy."""
        columns = batch.token_columns
        tokens, hidden = self.policy_tokens_and_hidden(batch, columns["advantages"])
        policy = self.loss(tokens)
        values = self._values(batch, hidden)
        critic = value_loss(values, columns["values"], columns["returns"], clip_value=self.clip_value)
        losses = (policy.losses, self.value_coef * critic.losses, -self.entropy_coef * tokens.entropies)
        metrics = policy_metrics(tokens, policy) | value_metrics(critic)
        return LossOutput([LossTerm(loss, "supervised_tokens") for loss in losses], metrics)

    def _values(self, batch: MicroBatch, hidden: Tensor) -> Tensor:
        return self.sharding.forward_beside(self.critic, self._judge, batch, hidden)

    def _judge(self, batch: MicroBatch, hidden: Tensor) -> Tensor:
        return self.critic.values(hidden if self.critic.trunk is None else self.critic.hidden(batch))

    def step_metrics(self) -> dict[str, float]:
        """Once per rollout also how much of the returns the critic knew."""
        metrics = super().step_metrics()
        return metrics | self.explained if metrics else metrics
