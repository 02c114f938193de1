"""Group relative policy optimisation (GRPO, arXiv 2402.03300) and its variants.

The policy samples G completions per prompt. The advantage of a completion is its reward minus the mean reward of its
group, divided by their standard deviation; the loss is the clipped surrogate of PPO plus a KL penalty (eq. 3):

    A = (r - mean(r_1…r_G)) / std(r_1…r_G)
    -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) + kl_coef · KL(π || π_ref),   ρ = π(token) / π_old(token)

The estimator and scale of advantages, the loss, its normaliser and the KL estimator are settings; see
``losses.advantages``, ``losses.policy_gradient``, ``losses.normaliser`` and ``losses.kl``.

1. Means are over the whole optimizer step, not over a micro-batch of one device.
2. Completions and groups that are filtered out are not in the batch, so they affect neither loss, KL nor normaliser.
   Tokens that are masked out (``top_entropy_quantile``, ``off_policy_threshold``) still count in the normaliser.
3. With ``remax``, the penalty of ``reward_kl_coef`` is not subtracted from the reward of the greedy completion.
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
from alignlab.types.settings import Settings


@dataclass(frozen=True, kw_only=True)
class AdvantageSettings(Settings):
    """How rewards become advantages; see ``losses.advantages``.

    Args:
        estimator: grpo, rloo, reinforce_plus_plus, remax, pass_at_k.
        scale: How advantages are scaled: group, batch, whiten or none.
        aggregation: How several rewards are combined: sum_then_normalize or normalize_then_sum.
        num_picked: k of pass_at_k.
    """

    estimator: Estimator
    scale: Scale
    aggregation: Aggregation
    num_picked: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings(Settings):
    """The KL penalty in the loss; see ``losses.kl``.

    Args:
        kl_coef: Weight of the penalty; at 0 it needs no reference.
        kl_estimator: k1, k2 or k3.
        kl_gradient: plain, on_policy or importance.
    """

    kl_coef: Annotated[float, Field(ge=0)]
    kl_estimator: KLEstimator
    kl_gradient: KLGradient


@dataclass(frozen=True, kw_only=True)
class TokenSelection(Settings):
    """The entropy bonus, and masks and weights of tokens.

    Args:
        entropy_coef: Weight of the entropy bonus, per nat.
        top_entropy_quantile: Fraction of a rollout's tokens, those of highest entropy, that the policy is trained on.
        off_policy_threshold: Largest mean over a completion's tokens of log(sampled / policy), in nats; beyond it, its
            tokens of negative advantage are masked out. ``None`` for no limit.
        importance_cap: Maximum importance weight that corrects for the log-probs of a separate sampling engine.
    """

    entropy_coef: float
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)]
    off_policy_threshold: Annotated[float, Field(ge=0)] | None
    importance_cap: Annotated[float, Field(gt=1)]


class GRPO(Method):
    """Minimise a policy loss with advantages relative to the group, plus a KL penalty.

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: Weights of tokens in the mean: sequence, token, constant or sum; see ``losses.normaliser``.
        advantage: Settings of the advantages.
        divergence: Settings of the KL penalty in the loss.
        tokens: Settings of the entropy bonus, and masks and weights of tokens.
        reference: Settings of the reference; not loaded if ``kl_coef`` and ``reward_kl_coef`` are 0.
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
        """Whether each prompt also gets a greedy completion, the baseline of ReMax."""
        return self.advantage.estimator == "remax"

    # --- before the update --------------------------------------------------------------------------------------------

    @property
    def score_names(self) -> tuple[str, ...]:
        """Names of the values that ``score`` returns. The entropy threshold is a quantile over the whole rollout."""
        entropies = ("entropies",) if self.tokens.top_entropy_quantile < 1 else ()
        return (*self.rollout.score_names(self.is_low_precision), *entropies)

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Score tokens before the first update: old and reference log-probs and entropies, as needed. Each ``[N]``."""
        return score_tokens(self.score_names, batch, lambda: self._scores(batch), self.reference)

    def advantages(self, rollout: Rollout) -> Rollout:
        """Add the advantages, computed over the whole rollout, and the mask of the tokens of highest entropy."""
        rewards, weights, greedy = self.rollout.rewards(rollout)
        if self.rollout.reward_kl_coef:
            total, kl = weighted_sum(rewards, weights), self.rollout.token_kl(rollout)
            rewards = penalise_rewards(total, kl, rollout.sequence_ids, kl_coef=self.rollout.reward_kl_coef)[:, None]
            greedy = None if greedy is None else weighted_sum(greedy, weights)[:, None]
            weights = weights.new_ones(1)
        values = advantages(rewards, weights, rollout.group_ids, **asdict(self.advantage), greedy_rewards=greedy)
        rollout = rollout.with_columns(advantages=values)
        if self.tokens.top_entropy_quantile == 1:
            return rollout
        entropies = rollout.token_columns["entropies"]
        threshold = entropy_threshold(entropies, self.tokens.top_entropy_quantile)
        return rollout.with_token_columns(top_entropy=top_entropy_mask(entropies, threshold).double())

    # --- update -------------------------------------------------------------------------------------------------------

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """The policy loss of each token plus its KL penalty, normalised, and the entropy bonus."""
        advantages, is_on_policy = batch.columns["advantages"][batch.sequence_ids], self.rollout.is_on_policy
        tokens = policy_tokens(self._scores(batch), batch, advantages, is_on_policy=is_on_policy)
        policy_loss = self.loss(tokens)
        losses = policy_loss.losses * self._weights(tokens, batch)
        if self.divergence.kl_coef:
            tokens = replace(tokens, reference_token_logps=self.reference.token_logps(batch))
            losses = losses + self.divergence.kl_coef * self._kl(tokens)
        max_tokens = self.rollout.max_completion_tokens
        terms = [normalise(losses, tokens.sequence_ids, tokens.num_sequences, self.normaliser, max_tokens)]
        if self.tokens.entropy_coef:
            terms.append(entropy_bonus(tokens.entropies, entropy_coef=self.tokens.entropy_coef))
        return LossOutput(terms, policy_metrics(tokens, policy_loss))

    def _scores(self, batch: MicroBatch) -> TokenScores:
        return token_scores(self.policy, batch, temperature=self.rollout.temperature, want=("entropies",))

    def _kl(self, tokens: PolicyTokens) -> Tensor:
        settings = {"estimator": self.divergence.kl_estimator, "gradient": self.divergence.kl_gradient}
        return kl_losses(tokens.token_logps, tokens.reference_token_logps, tokens.old_token_logps, **settings)

    def _weights(self, tokens: PolicyTokens, batch: MicroBatch) -> Tensor | float:
        """Weight of each token's policy loss: masks and importance weights. Shape ``[N]``, or 1.0 if there are none."""
        columns, sequences = batch.token_columns, (tokens.sequence_ids, tokens.num_sequences)
        weights = columns.get("top_entropy", 1.0)
        if tokens.sampled_token_logps is not None:  # a separate engine's probabilities differ from the trainer's
            settings = {"cap": self.tokens.importance_cap, "level": "token", "beyond": "truncate"}
            logps = columns["old_logps"], tokens.sampled_token_logps
            weights = weights * truncated_importance(*logps, *sequences, **settings)
        if self.tokens.off_policy_threshold is not None:
            threshold = self.tokens.off_policy_threshold
            values = (tokens.token_logps, columns["sampled_logps"], tokens.advantages)
            weights = weights * off_policy_mask(*values, *sequences, threshold=threshold)
        return weights
