"""REINFORCE leave-one-out (RLOO, arXiv 2402.14740).

The advantage of a completion is its reward minus the mean reward of the other completions of its prompt. The KL penalty
is part of the reward (``reward_kl_coef``): k1, summed over the completion.

1. The ratio of the whole completion is clipped as in PPO; on policy it is 1, and the loss is that of the paper.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from alignlab.losses.advantages import estimate
from alignlab.losses.kl import penalise_rewards
from alignlab.losses.normaliser import Normaliser, normalise
from alignlab.losses.policy_gradient import PolicyLoss, PolicyTokens, policy_metrics
from alignlab.methods.base import Factories, Method
from alignlab.methods.policy_gradient import policy_tokens, score_tokens
from alignlab.methods.reference import MovingReferenceSettings, ReferencePolicy
from alignlab.models.scoring import TokenScores, token_scores
from alignlab.optim.rates import FROM_REWARDS
from alignlab.rollout.data import RolloutData
from alignlab.rollout.rollout import Rollout
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.settings import RolloutSettings
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput
from alignlab.types.rows import Prompt


class RLOO(Method):
    """Minimise a policy loss with a leave-one-out baseline (eq. 9).

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: Weights of tokens in the mean: sequence, token, constant or sum; see ``losses.normaliser``.
        scale: How advantages are scaled: none, batch or whiten; see ``losses.advantages``.
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
        scale: Literal["none", "batch", "whiten"],
        reference: MovingReferenceSettings,
        rollout: RolloutSettings,
        sampler: Sampler,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.loss, self.normaliser, self.scale = loss, normaliser, scale
        self.rollout, self.reference = RolloutData(rollout, sampler), None
        if rollout.reward_kl_coef:
            self.reference = ReferencePolicy(reference, factories.open_model, self.rollout.temperature)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the values that ``score`` returns."""
        return self.rollout.score_names(self.is_low_precision)

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Score tokens before the first update: old and reference log-probs, as needed. Each ``[N]``."""
        return score_tokens(self.score_names, batch, lambda: self._scores(batch), self.reference)

    def advantages(self, rollout: Rollout) -> Rollout:
        """Add the advantages: rewards with the KL penalty, minus their leave-one-out baseline."""
        kl = self.rollout.token_kl(rollout)
        coef = self.rollout.reward_kl_coef
        rewards = penalise_rewards(rollout.columns["reward"], kl, rollout.sequence_ids, kl_coef=coef)
        advantages = estimate(rewards, rollout.group_ids, estimator="rloo", scale=self.scale)
        return rollout.with_columns(advantages=advantages)

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The policy loss of each token, normalised."""
        advantages, is_on_policy = batch.columns["advantages"][batch.sequence_ids], self.rollout.is_on_policy
        tokens = policy_tokens(self._scores(batch), batch, advantages, is_on_policy=is_on_policy)
        loss = self.loss(tokens)
        max_tokens = self.rollout.max_completion_tokens
        term = normalise(loss.losses, tokens.sequence_ids, tokens.num_sequences, self.normaliser, max_tokens)
        return LossOutput([term], policy_metrics(tokens, loss))

    def _scores(self, batch: MicroBatch) -> TokenScores:
        return token_scores(self.policy, batch, temperature=self.rollout.temperature, want=("entropies",))
