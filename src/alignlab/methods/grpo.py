"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) and its family.

A completion is as good as its reward is above those of the others to the same prompt. Estimator, scale, loss,
normaliser and divergence are each a choice; see ``losses.advantages``, ``losses.policy_gradient`` and ``losses.kl``.

1. Means are over the whole optimizer step, not over what a device holds at a time.
2. Completions and groups that are left out are not in the batch: neither loss, divergence nor denominator knows them.
   Tokens that are left out (``top_entropy_quantile``, ``off_policy_threshold``) still count in the denominator.
3. Under ``remax`` the greedy completion's reward is taken as it is, without the divergence of ``reward_kl_coef``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from alignlab.losses.advantages import Aggregation, Estimator, Scale, advantages, weighted_sum
from alignlab.losses.entropy import entropy_bonus, entropy_threshold, top_entropy_mask
from alignlab.losses.importance import off_policy_mask, truncated_importance
from alignlab.losses.kl import KLEstimator, KLGradient, kl_losses, penalise_rewards
from alignlab.losses.normaliser import Normaliser, normalise
from alignlab.losses.policy_gradient import PolicyLoss, PolicyTokens, policy_metrics
from alignlab.methods.online import Online
from alignlab.models.scoring import token_scores
from alignlab.rollout.groups import Rollout
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput
from alignlab.types.rows import TokenRow

Coefficient = Annotated[float, Field(ge=0)]


class GRPO(Online):
    """Raise the probability of what was better than the rest of its group.

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: What a token weighs: sequence, token, constant or sum.
        estimator: Advantage: grpo, rloo, reinforce_plus_plus, remax, pass_at_k.
        scale: What advantages are divided by: group, batch, whiten or none.
        aggregation: Of several rewards: sum_then_normalize or normalize_then_sum.
        num_picked: k of pass_at_k.
        kl_coef: Weight of the divergence from the reference; at 0 no reference is loaded.
        kl_estimator: k1, k2 or k3.
        kl_gradient: plain, on_policy or importance.
        entropy_coef: Bonus per nat of entropy.
        top_entropy_quantile: Share of a rollout's tokens, those of highest entropy, that the policy learns from.
        off_policy_threshold: Mean log-ratio of sampled to present probability, from which on a completion's bad tokens
            are left out; ``None`` for never.
        importance_cap: Largest weight that corrects for another engine's probabilities.
        factories: See ``Online``.
    """

    def __init__(
        self,
        *,
        loss: Callable[..., PolicyLoss],
        normaliser: Normaliser,
        estimator: Estimator,
        scale: Scale,
        aggregation: Aggregation,
        num_picked: Annotated[int, Field(ge=1)],
        kl_coef: Coefficient,
        kl_estimator: KLEstimator,
        kl_gradient: KLGradient,
        entropy_coef: float,
        top_entropy_quantile: Annotated[float, Field(gt=0, le=1)],
        off_policy_threshold: Coefficient | None,
        importance_cap: Annotated[float, Field(gt=1)],
        reference: str,
        **factories,
    ):
        needed = kl_coef > 0 or factories["reward_kl_coef"] > 0
        super().__init__(reference=reference if needed else "none", **factories)
        self.loss, self.normaliser = loss, normaliser
        self.estimate = {"estimator": estimator, "scale": scale, "aggregation": aggregation, "num_picked": num_picked}
        self.kl_coef, self.entropy_coef, self.importance_cap = kl_coef, entropy_coef, importance_cap
        self.kl = {"estimator": kl_estimator, "gradient": kl_gradient}
        self.top_entropy_quantile, self.off_policy_threshold = top_entropy_quantile, off_policy_threshold

    @property
    def wants_greedy(self) -> bool:
        """Whether each prompt is also completed greedily, as what its completions are held against."""
        return self.estimate["estimator"] == "remax"

    @property
    def scores_before(self) -> bool:
        """Entropies are compared over the whole rollout."""
        return super().scores_before or self.top_entropy_quantile < 1

    def known_before(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Entropies too, where they decide what is learned from."""
        known = super().known_before(batch)
        if self.top_entropy_quantile == 1:
            return known
        scores = token_scores(self.policy, batch, temperature=self.temperature, want=("entropies",))
        return known | {"entropies": scores.entropies}

    def learnable(self, rollout: Rollout) -> list[TokenRow]:
        """Advantages over the whole rollout, and which of its tokens decide something."""
        names = [name.removeprefix("reward/") for name in rollout.columns if name.startswith("reward/")]
        weights = torch.tensor([self.scorer.weights.get(name, 1.0) for name in names], dtype=torch.float64)
        rewards = _columns(rollout, "reward", names)
        greedy = _columns(rollout, "greedy", names) if self.wants_greedy else None
        if self.reward_kl_coef:
            kl = {
                "token_kl": self.token_kl(rollout),
                "sequence_ids": rollout.sequence_ids,
                "kl_coef": self.reward_kl_coef,
            }
            rewards = penalise_rewards(weighted_sum(rewards, weights), **kl)[:, None]
            greedy = None if greedy is None else weighted_sum(greedy, weights)[:, None]
            weights = weights.new_ones(1)
        found = advantages(rewards, weights, rollout.group_ids, **self.estimate, greedy_rewards=greedy)
        return self._with_decisive(Rollout(rollout.with_columns(advantages=found)))

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses of the tokens with the divergence added, weighed as the normaliser has it, and the entropy bonus."""
        tokens = self.policy_tokens(batch, batch.columns["advantages"][batch.sequence_ids])
        if self.kl_coef:
            tokens = replace(tokens, reference_token_logps=self.reference_token_logps(batch))
        policy_loss = self.loss(tokens)
        losses = policy_loss.losses
        if tokens.sampled_token_logps is not None:
            losses = losses * self._importance(tokens, batch.token_columns["old_logps"])
        losses = losses * self._learned(tokens, batch.token_columns)
        if self.kl_coef:
            logps = (tokens.token_logps, tokens.reference_token_logps, tokens.old_token_logps)
            losses = losses + self.kl_coef * kl_losses(*logps, **self.kl)
        longest = self.rollout.max_completion_tokens
        terms = [normalise(losses, tokens.sequence_ids, tokens.num_sequences, self.normaliser, longest)]
        if self.entropy_coef:
            terms.append(entropy_bonus(tokens.entropies, entropy_coef=self.entropy_coef))
        return LossOutput(terms, policy_metrics(tokens, policy_loss))

    def _with_decisive(self, rollout: Rollout) -> list[TokenRow]:
        """The rows with which of their tokens are among those of highest entropy."""
        if self.top_entropy_quantile == 1:
            return list(rollout.rows)
        entropies = rollout.token_columns["entropies"]
        top_entropy = top_entropy_mask(entropies, entropy_threshold(entropies, self.top_entropy_quantile))
        return rollout.with_token_columns(top_entropy=top_entropy.double())

    def _learned(self, tokens: PolicyTokens, columns: dict[str, Tensor]) -> Tensor | float:
        """1 or 0 for each token: whether the policy learns from it."""
        learned = columns.get("top_entropy", 1.0)
        if self.off_policy_threshold is None:
            return learned
        where = (tokens.advantages, tokens.sequence_ids, tokens.num_sequences)
        sampled = columns["sampled_logps"]
        return learned * off_policy_mask(tokens.token_logps, sampled, *where, threshold=self.off_policy_threshold)

    def _importance(self, tokens: PolicyTokens, old_logps: Tensor) -> Tensor:
        """What corrects for an engine whose probabilities are not quite the trainer's."""
        where = (tokens.sequence_ids, tokens.num_sequences)
        settings = {"cap": self.importance_cap, "level": "token", "beyond": "truncate"}
        return truncated_importance(old_logps, tokens.sampled_token_logps, *where, **settings)


def _columns(rollout: Rollout, kind: str, names: list[str]) -> Tensor:
    """Rewards side by side: those of the completions, or of the greedy one. Shape ``[S, R]``."""
    return torch.stack([rollout.columns[f"{kind}/{name}"] for name in names], 1)
