"""REINFORCE leave-one-out (RLOO, arXiv 2402.14740): each completion against the mean reward of the others.

1. The ratio of whole completions is clipped as PPO clips that of tokens; on policy it is 1, and the loss the paper's.
2. The divergence from the reference is subtracted from the reward (``reward_kl_coef``), k1 summed over the completion.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from alignlab.losses.advantages import estimate
from alignlab.losses.kl import penalise_rewards
from alignlab.losses.normaliser import Normaliser, normalise
from alignlab.losses.policy_gradient import PolicyLoss, PolicyTokens, policy_metrics
from alignlab.methods.base import Factories, Method
from alignlab.methods.policy_gradient import policy_tokens, scores_before
from alignlab.methods.reference import MovingReferenceSettings, ReferencePolicy
from alignlab.models.scoring import TokenScores, token_scores
from alignlab.rollout.data import RolloutData
from alignlab.rollout.rollout import Rollout
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.settings import RolloutSettings
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput
from alignlab.types.rows import Prompt


class RLOO(Method):
    """Minimise the policy gradient's surrogate with a leave-one-out baseline (eq. 9).

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: What a token weighs: sequence, token, constant or sum.
        scale: What advantages are divided by: none, batch or whiten.
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
    def scores_before(self) -> tuple[str, ...]:
        """What must be known before the first update."""
        return self.rollout.scores_before(self.is_low_precision)

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Old and reference log-probs, where they are needed. Each ``[N]``."""
        return scores_before(self.scores_before, batch, lambda: self._scores(batch), self.reference)

    def advantages(self, rollout: Rollout) -> Rollout:
        """Rewards less the divergence, against the others of the group."""
        kl = self.rollout.token_kl(rollout)
        coef = self.rollout.reward_kl_coef
        rewards = penalise_rewards(rollout.columns["reward"], kl, rollout.sequence_ids, kl_coef=coef)
        found = estimate(rewards, rollout.group_ids, estimator="rloo", scale=self.scale)
        return rollout.with_columns(advantages=found)

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses of the tokens, weighed as the normaliser has it."""
        advantages, once = batch.columns["advantages"][batch.sequence_ids], self.rollout.is_learned_from_once
        tokens = policy_tokens(self._scores(batch), batch, advantages, is_learned_from_once=once)
        loss = self.loss(tokens)
        longest = self.rollout.max_completion_tokens
        term = normalise(loss.losses, tokens.sequence_ids, tokens.num_sequences, self.normaliser, longest)
        return LossOutput([term], policy_metrics(tokens, loss))

    def _scores(self, batch: MicroBatch) -> TokenScores:
        return token_scores(self.policy, batch, temperature=self.rollout.temperature, want=("entropies",))
