"""Proximal policy optimisation (PPO, arXiv 1707.06347) for language models (arXiv 2203.02155).

Each token is an action. Its reward is the KL penalty of ``reward_kl_coef``, plus the reward of the completion at the
last token. Advantages come from a critic by generalised advantage estimation (GAE, arXiv 1506.02438). The loss is the
clipped surrogate, plus the value loss and an entropy bonus (eq. 9).

1. Means are over all tokens of the optimizer step (``normaliser: token``), and advantages are whitened over the whole
   rollout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from alignlab.losses.entropy import entropy_bonus
from alignlab.losses.normaliser import Normaliser, normalise
from alignlab.losses.policy_gradient import PolicyLoss, PolicyTokens, policy_metrics
from alignlab.losses.value import explained_variance, gae, token_rewards, value_loss, value_metrics, whiten
from alignlab.methods.base import Factories, Method
from alignlab.methods.policy_gradient import policy_tokens, score_tokens
from alignlab.methods.reference import MovingReferenceSettings, ReferencePolicy
from alignlab.models.critic import Critic
from alignlab.models.scoring import TokenScores, token_scores
from alignlab.optim.rates import FROM_REWARDS
from alignlab.rollout.data import RolloutData
from alignlab.rollout.rollout import Rollout
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.settings import RolloutSettings
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Prompt
from alignlab.types.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class CriticSettings(Settings):
    """Settings of the critic and its loss.

    Args:
        critic: ``shared``: a value head on the policy's hidden states; ``separate``: a separate model, which starts as
            the policy; or the path of a reward model to start from. See ``models.critic``.
        critic_lr_factor: The critic's learning rate divided by that of the policy.
        value_coef: Weight of the value loss.
        clip_value: Clip range of values around the old values in the value loss; ``None`` for no clipping.
    """

    critic: str
    critic_lr_factor: Annotated[float, Field(gt=0)]
    value_coef: Annotated[float, Field(ge=0)]
    clip_value: Annotated[float, Field(gt=0)] | None


@dataclass(frozen=True, kw_only=True)
class GAESettings(Settings):
    """Settings of generalised advantage estimation.

    Args:
        gamma: Discount per token.
        gae_lambda: λ: 0 gives one-step TD errors, 1 gives discounted returns minus values.
        whiten_rewards: Whether to scale token rewards to variance 1 over the rollout.
        whiten_advantages: Whether to scale advantages to mean 0 and variance 1 over the rollout.
    """

    gamma: Share
    gae_lambda: Share
    whiten_rewards: bool
    whiten_advantages: bool


class PPO(Method):
    """Minimise the clipped surrogate plus the clipped value loss, minus an entropy bonus.

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: Weights of tokens in the mean: token, sequence, constant or sum; see ``losses.normaliser``.
        critic: Settings of the critic and its loss.
        advantage: Settings of GAE.
        entropy_coef: Weight of the entropy bonus, per nat.
        reference: Settings of the reference; not loaded if ``reward_kl_coef`` is 0.
        rollout: Settings of sampling and rewards.
        sampler: Samples completions.
        factories: See ``Method``.
    """

    row_kind = Prompt
    learning_rates = FROM_REWARDS

    def __init__(
        self,
        *,
        loss: Callable[[PolicyTokens], PolicyLoss],
        normaliser: Normaliser,
        critic: CriticSettings,
        advantage: GAESettings,
        entropy_coef: float,
        reference: MovingReferenceSettings,
        rollout: RolloutSettings,
        sampler: Sampler,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.loss, self.normaliser, self.entropy_coef = loss, normaliser, entropy_coef
        self.value, self.advantage = critic, advantage
        self.rollout, self.reference = RolloutData(rollout, sampler), None
        if rollout.reward_kl_coef:
            self.reference = ReferencePolicy(reference, factories.open_model, self.rollout.temperature)
        self.critic = Critic(critic.critic, critic.critic_lr_factor, factories.open_reward_model)

    # --- before the update --------------------------------------------------------------------------------------------

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the values that ``score`` returns; values of the critic are always needed."""
        return (*self.rollout.score_names(self.is_low_precision), "values")

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Score tokens before the first update: values, and old and reference log-probs as needed. Each ``[N]``."""
        scores = self._scores(batch)
        found = score_tokens(self.score_names, batch, lambda: scores, self.reference)
        return found | {"values": self.critic.values(batch, scores.hidden)}

    def advantages(self, rollout: Rollout) -> Rollout:
        """Add advantages and returns of tokens, computed over the whole rollout."""
        settings, sequence_ids, values = self.advantage, rollout.sequence_ids, rollout.token_columns["values"]
        scores, kl = rollout.columns["reward"].nan_to_num(nan=0.0), self.rollout.token_kl(rollout)
        rewards = token_rewards(scores, kl, sequence_ids, kl_coef=self.rollout.reward_kl_coef)
        rewards = whiten(rewards, shift=False) if settings.whiten_rewards else rewards
        estimate = gae(rewards, values, sequence_ids, gamma=settings.gamma, lam=settings.gae_lambda)
        advantages = whiten(estimate.advantages) if settings.whiten_advantages else estimate.advantages
        explained = explained_variance(values, estimate.returns)
        rollout = rollout.with_metrics(explained_variance=float(explained.sum / explained.weight.clamp(min=1e-12)))
        return rollout.with_token_columns(advantages=advantages, returns=estimate.returns)

    # --- update -------------------------------------------------------------------------------------------------------

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The policy loss, the value loss and the entropy bonus of each token."""
        scores, columns = self._scores(batch), batch.token_columns
        tokens = policy_tokens(scores, batch, columns["advantages"], is_on_policy=self.rollout.is_on_policy)
        policy = self.loss(tokens)
        values = self.critic.values(batch, scores.hidden)
        critic = value_loss(values, columns["values"], columns["returns"], clip_value=self.value.clip_value)
        max_tokens = self.rollout.max_completion_tokens
        terms = [
            normalise(policy.losses, tokens.sequence_ids, tokens.num_sequences, self.normaliser, max_tokens),
            LossTerm(self.value.value_coef * critic.losses, "supervised_tokens"),
            entropy_bonus(tokens.entropies, entropy_coef=self.entropy_coef),
        ]
        return LossOutput(terms, policy_metrics(tokens, policy) | value_metrics(critic))

    def _scores(self, batch: MicroBatch) -> TokenScores:
        return token_scores(self.policy, batch, temperature=self.rollout.temperature, want=("entropies",))
