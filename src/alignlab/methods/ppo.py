"""Proximal policy optimisation (PPO, arXiv 1707.06347) of a language model (arXiv 2203.02155).

Each token is an action; its advantage comes from a critic by generalised advantage estimation (arXiv 1506.02438).

1. The score stands at a completion's last token, and each token pays for leaving the reference (``reward_kl_coef``).
2. Means are over all tokens of the optimizer step (``normaliser: token``), and advantages are whitened over the whole
   rollout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from alignlab.losses.entropy import entropy_bonus
from alignlab.losses.normaliser import Normaliser, normalise
from alignlab.losses.policy_gradient import PolicyLoss, PolicyTokens, policy_metrics
from alignlab.losses.value import explained_variance, gae, token_rewards, value_loss, value_metrics, whiten
from alignlab.methods.base import Factories, Method
from alignlab.methods.policy_gradient import policy_tokens, scores_before
from alignlab.methods.reference import MovingReferenceSettings, ReferencePolicy
from alignlab.models.critic import Critic
from alignlab.models.scoring import TokenScores, token_scores
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
    """The critic and its loss.

    Args:
        critic: ``shared``: a head on the policy's hidden states; ``separate``: a model of its own.
        value_coef: Weight of the critic's loss.
        clip_value: How far from its old value a value still learns; ``None``: anywhere.
    """

    critic: Literal["shared", "separate"]
    value_coef: Annotated[float, Field(ge=0)]
    clip_value: Annotated[float, Field(gt=0)] | None


@dataclass(frozen=True, kw_only=True)
class GAESettings(Settings):
    """How rewards and values become advantages.

    Args:
        gamma: Discount per token.
        gae_lambda: λ: 0 trusts the critic, 1 the rewards.
        whiten_rewards: Bring the rewards of tokens to variance 1 over the rollout.
        whiten_advantages: Bring advantages to mean 0 and variance 1 over the rollout.
    """

    gamma: Share
    gae_lambda: Share
    whiten_rewards: bool
    whiten_advantages: bool


class PPO(Method):
    """Minimise the clipped surrogate, and the critic's clipped error beside it.

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: What a token weighs: token, sequence, constant or sum.
        critic: The critic and its loss.
        advantage: How rewards and values become advantages.
        entropy_coef: Bonus per nat of entropy.
        reference: What divergence is measured from; not loaded without ``reward_kl_coef``.
        rollout: What is sampled and how it is rewarded.
        sampler: Draws completions.
        factories: See ``Method``.
    """

    row_kind = Prompt

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
        self.critic = Critic(separate=critic.critic == "separate")

    # --- before learning ----------------------------------------------------------------------------------------------

    @property
    def scores_before(self) -> tuple[str, ...]:
        """What must be known before the first update; always what the critic expects."""
        return (*self.rollout.scores_before(self.is_low_precision), "values")

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Old and reference log-probs, where they are needed, and values. Each ``[N]``."""
        scores = self._scores(batch)
        known = scores_before(self.scores_before, batch, lambda: scores, self.reference)
        return known | {"values": self.critic.values(batch, scores.hidden)}

    def advantages(self, rollout: Rollout) -> Rollout:
        """Advantages and returns of tokens over the whole rollout."""
        settings, sequence_ids, values = self.advantage, rollout.sequence_ids, rollout.token_columns["values"]
        scores, kl = rollout.columns["reward"].nan_to_num(nan=0.0), self.rollout.token_kl(rollout)
        rewards = token_rewards(scores, kl, sequence_ids, kl_coef=self.rollout.reward_kl_coef)
        rewards = whiten(rewards, shift=False) if settings.whiten_rewards else rewards
        estimate = gae(rewards, values, sequence_ids, gamma=settings.gamma, lam=settings.gae_lambda)
        advantages = whiten(estimate.advantages) if settings.whiten_advantages else estimate.advantages
        explained = explained_variance(values, estimate.returns)
        rollout = rollout.with_metrics(explained_variance=float(explained.sum / explained.weight.clamp(min=1e-12)))
        return rollout.with_token_columns(advantages=advantages, returns=estimate.returns)

    # --- learning -----------------------------------------------------------------------------------------------------

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The policy's surrogate, and per token the critic's error and the entropy."""
        scores, columns, once = self._scores(batch), batch.token_columns, self.rollout.is_learned_from_once
        tokens = policy_tokens(scores, batch, columns["advantages"], is_learned_from_once=once)
        policy = self.loss(tokens)
        values = self.critic.values(batch, scores.hidden)
        critic = value_loss(values, columns["values"], columns["returns"], clip_value=self.value.clip_value)
        longest = self.rollout.max_completion_tokens
        terms = [
            normalise(policy.losses, tokens.sequence_ids, tokens.num_sequences, self.normaliser, longest),
            LossTerm(self.value.value_coef * critic.losses, "supervised_tokens"),
            entropy_bonus(tokens.entropies, entropy_coef=self.entropy_coef),
        ]
        return LossOutput(terms, policy_metrics(tokens, policy) | value_metrics(critic))

    def _scores(self, batch: MicroBatch) -> TokenScores:
        return token_scores(self.policy, batch, temperature=self.rollout.temperature, want=("entropies",))
