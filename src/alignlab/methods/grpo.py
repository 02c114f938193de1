"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) and its family.

The advantage of a completion is its reward above those of the others to the same prompt. Estimator, scale, loss,
normaliser and divergence are each a choice; see ``losses.advantages``, ``losses.policy_gradient`` and ``losses.kl``.

1. Means are over the whole optimizer step, not over what a device holds at a time.
2. Completions and groups that are left out are not in the batch: neither loss, divergence nor denominator knows them.
   Tokens that are left out (``top_entropy_quantile``, ``off_policy_threshold``) still count in the denominator.
3. Under ``remax`` the greedy completion's reward is taken as it is, without the divergence of ``reward_kl_coef``.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated

from pydantic import Field
from torch import Tensor

from alignlab.losses.advantages import Aggregation, Estimator, Scale, advantages, weighted_sum
from alignlab.losses.entropy import entropy_bonus, entropy_threshold, top_entropy_mask
from alignlab.losses.importance import off_policy_mask, truncated_importance
from alignlab.losses.kl import KLEstimator, KLGradient, kl_losses, penalise_rewards
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
from alignlab.types.settings import Settings


@dataclass(frozen=True, kw_only=True)
class AdvantageSettings(Settings):
    """How rewards become advantages; see ``losses.advantages``.

    Args:
        estimator: grpo, rloo, reinforce_plus_plus, remax, pass_at_k.
        scale: What advantages are divided by: group, batch, whiten or none.
        aggregation: Of several rewards: sum_then_normalize or normalize_then_sum.
        num_picked: k of pass_at_k.
    """

    estimator: Estimator
    scale: Scale
    aggregation: Aggregation
    num_picked: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings(Settings):
    """The divergence from the reference as a term of the loss; see ``losses.kl``.

    Args:
        kl_coef: Its weight; at 0 no reference is loaded.
        kl_estimator: k1, k2 or k3.
        kl_gradient: plain, on_policy or importance.
    """

    kl_coef: Annotated[float, Field(ge=0)]
    kl_estimator: KLEstimator
    kl_gradient: KLGradient


@dataclass(frozen=True, kw_only=True)
class TokenSelection(Settings):
    """Which sampled tokens are learned from, and how much each counts.

    Args:
        entropy_coef: Bonus per nat of entropy.
        top_entropy_quantile: Share of a rollout's tokens, those of highest entropy, that the policy learns from.
        off_policy_threshold: Mean log-ratio of sampled to present probability, from which on a completion's bad tokens
            are left out; ``None`` for never.
        importance_cap: Largest weight that corrects for another engine's probabilities.
    """

    entropy_coef: float
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)]
    off_policy_threshold: Annotated[float, Field(ge=0)] | None
    importance_cap: Annotated[float, Field(gt=1)]


class GRPO(Method):
    """Raise the probability of what was better than the rest of its group.

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: What a token weighs: sequence, token, constant or sum.
        advantage: How rewards become advantages.
        divergence: The divergence from the reference in the loss.
        tokens: Which tokens are learned from.
        reference: What divergence is measured from; not loaded where no coefficient asks for it.
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
        advantage: AdvantageSettings,
        divergence: DivergenceSettings,
        tokens: TokenSelection,
        reference: MovingReferenceSettings,
        rollout: RolloutSettings,
        sampler: Sampler,
        factories: Factories,
    ):
        super().__init__(factories=factories)
        self.loss, self.normaliser = loss, normaliser
        self.advantage, self.divergence, self.tokens = advantage, divergence, tokens
        self.rollout, self.reference = RolloutData(rollout, sampler), None
        if divergence.kl_coef or rollout.reward_kl_coef:
            self.reference = ReferencePolicy(reference, factories.open_model, self.rollout.temperature)

    @property
    def needs_greedy(self) -> bool:
        """Whether each prompt is also completed greedily, as what its completions are compared with."""
        return self.advantage.estimator == "remax"

    # --- before learning ----------------------------------------------------------------------------------------------

    @property
    def scores_before(self) -> tuple[str, ...]:
        """What must be known before the first update; entropies are compared over the whole rollout."""
        entropies = ("entropies",) if self.tokens.top_entropy_quantile < 1 else ()
        return (*self.rollout.scores_before(self.is_low_precision), *entropies)

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Old and reference log-probs and entropies, where they are needed. Each ``[N]``."""
        return scores_before(self.scores_before, batch, lambda: self._scores(batch), self.reference)

    def advantages(self, rollout: Rollout) -> Rollout:
        """Advantages over the whole rollout, and which of its tokens are among those of highest entropy."""
        rewards, weights, greedy = self.rollout.rewards(rollout)
        if self.rollout.reward_kl_coef:
            total, kl = weighted_sum(rewards, weights), self.rollout.token_kl(rollout)
            rewards = penalise_rewards(total, kl, rollout.sequence_ids, kl_coef=self.rollout.reward_kl_coef)[:, None]
            greedy = None if greedy is None else weighted_sum(greedy, weights)[:, None]
            weights = weights.new_ones(1)
        found = advantages(rewards, weights, rollout.group_ids, **asdict(self.advantage), greedy_rewards=greedy)
        rollout = rollout.with_columns(advantages=found)
        if self.tokens.top_entropy_quantile == 1:
            return rollout
        entropies = rollout.token_columns["entropies"]
        threshold = entropy_threshold(entropies, self.tokens.top_entropy_quantile)
        return rollout.with_token_columns(top_entropy=top_entropy_mask(entropies, threshold).double())

    # --- learning -----------------------------------------------------------------------------------------------------

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses of the tokens with the divergence added, weighed as the normaliser has it, and the entropy bonus."""
        advantages, once = batch.columns["advantages"][batch.sequence_ids], self.rollout.is_learned_from_once
        tokens = policy_tokens(self._scores(batch), batch, advantages, is_learned_from_once=once)
        policy_loss = self.loss(tokens)
        losses = policy_loss.losses * self._weights(tokens, batch)
        if self.divergence.kl_coef:
            tokens = replace(tokens, reference_token_logps=self.reference.token_logps(batch))
            losses = losses + self.divergence.kl_coef * self._kl(tokens)
        longest = self.rollout.max_completion_tokens
        terms = [normalise(losses, tokens.sequence_ids, tokens.num_sequences, self.normaliser, longest)]
        if self.tokens.entropy_coef:
            terms.append(entropy_bonus(tokens.entropies, entropy_coef=self.tokens.entropy_coef))
        return LossOutput(terms, policy_metrics(tokens, policy_loss))

    def _scores(self, batch: MicroBatch) -> TokenScores:
        return token_scores(self.policy, batch, temperature=self.rollout.temperature, want=("entropies",))

    def _kl(self, tokens: PolicyTokens) -> Tensor:
        settings = {"estimator": self.divergence.kl_estimator, "gradient": self.divergence.kl_gradient}
        return kl_losses(tokens.token_logps, tokens.reference_token_logps, tokens.old_token_logps, **settings)

    def _weights(self, tokens: PolicyTokens, batch: MicroBatch) -> Tensor | float:
        """How much the policy learns from each token: 0 where it is left out. Shape ``[N]``."""
        columns, where = batch.token_columns, (tokens.sequence_ids, tokens.num_sequences)
        weights = columns.get("top_entropy", 1.0)
        if tokens.sampled_token_logps is not None:  # another engine's probabilities are not quite the trainer's
            settings = {"cap": self.tokens.importance_cap, "level": "token", "beyond": "truncate"}
            pair = columns["old_logps"], tokens.sampled_token_logps
            weights = weights * truncated_importance(*pair, *where, **settings)
        if self.tokens.off_policy_threshold is not None:
            threshold = self.tokens.off_policy_threshold
            drift = (tokens.token_logps, columns["sampled_logps"], tokens.advantages)
            weights = weights * off_policy_mask(*drift, *where, threshold=threshold)
        return weights
