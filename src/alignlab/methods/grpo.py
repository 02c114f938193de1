"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) and its family.

A completion is as good as its reward is above those of the others to the same prompt. Estimator, scale, loss,
normaliser and divergence are each a choice; see ``losses.advantages``, ``losses.policy_gradient`` and ``losses.kl``.

1. Means are over the whole optimizer step, not over what a device holds at a time.
2. Completions and groups that are left out are not in the batch: neither loss, divergence nor denominator knows them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from alignlab.batches import LossOutput, MicroBatch, StepTotals, TokenRow
from alignlab.losses.advantages import Aggregation, Estimator, Scale, advantages, weighted_sum
from alignlab.losses.entropy import entropy_loss
from alignlab.losses.importance import truncated_importance
from alignlab.losses.kl import KLEstimator, KLGradient, kl_losses, penalise_rewards
from alignlab.losses.normaliser import Normaliser, total_weight, weigh
from alignlab.losses.policy_gradient import PolicyLoss, PolicyTokens, policy_metrics
from alignlab.methods.online import Online
from alignlab.rollout.experience import Rollout

Coefficient = Annotated[float, Field(ge=0)]


class GRPO(Online):
    """Raise the probability of what was better than the rest of its group.

    Args:
        loss: ``(tokens)`` → loss per token; see ``losses.policy_gradient``.
        normaliser: What a token weighs: sequence, token, constant or sum.
        estimator: Advantage: grpo, rloo, reinforce_plus_plus, pass_at_k.
        scale: What advantages are divided by: group, batch, whiten or none.
        aggregation: Of several rewards: sum_then_normalize or normalize_then_sum.
        num_picked: k of pass_at_k.
        kl_coef: Weight of the divergence from the reference; at 0 no reference is loaded.
        kl_estimator: k1, k2 or k3.
        kl_gradient: plain, on_policy or importance.
        entropy_coef: Bonus per nat of entropy.
        importance_cap: Largest weight that corrects for another engine's probabilities.
        parts: See ``Online``.
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
        importance_cap: Annotated[float, Field(gt=1)],
        reference: str,
        **parts,
    ):
        needed = kl_coef > 0 or parts["reward_kl_coef"] > 0
        super().__init__(reference=reference if needed else "none", **parts)
        self.loss, self.normaliser = loss, normaliser
        self.estimate = {"estimator": estimator, "scale": scale, "aggregation": aggregation, "num_picked": num_picked}
        self.kl_coef, self.entropy_coef, self.importance_cap = kl_coef, entropy_coef, importance_cap
        self.kl = {"estimator": kl_estimator, "gradient": kl_gradient}

    def learnable(self, rollout: Rollout) -> list[TokenRow]:
        """Advantages over the whole rollout."""
        names = [name for name in rollout.numbers if name.startswith("reward/")]
        weights = [self.scorer.weights.get(name.removeprefix("reward/"), 1.0) for name in names]
        weights = torch.tensor(weights, dtype=torch.float64)
        rewards = torch.stack([rollout.numbers[name] for name in names], 1)
        if self.reward_kl_coef:
            kl = {"token_kl": self.token_kl(rollout), "owner": rollout.owner, "kl_coef": self.reward_kl_coef}
            rewards, weights = penalise_rewards(weighted_sum(rewards, weights), **kl)[:, None], weights.new_ones(1)
        return rollout.with_numbers(advantages=advantages(rewards, weights, rollout.tree, **self.estimate))

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses of the tokens with the divergence added, each weighed as the normaliser has it."""
        tokens = self.policy_tokens(batch, batch.numbers["advantages"][batch.owner])
        if self.kl_coef:
            tokens = replace(tokens, reference_token_logps=self.reference_token_logps(batch))
        policy_loss = self.loss(tokens)
        losses = policy_loss.losses
        if tokens.sampled_token_logps is not None:
            losses = losses * self._importance(tokens, batch.token_numbers["old_logps"])
        if self.kl_coef:
            logps = (tokens.token_logps, tokens.reference_token_logps, tokens.old_token_logps)
            losses = losses + self.kl_coef * kl_losses(*logps, **self.kl)
        weights = {"normaliser": self.normaliser, "max_completion_tokens": self.rollout.max_completion_tokens}
        metrics = policy_metrics(tokens, policy_loss)
        output = weigh(losses, tokens.owner, tokens.sequence_mask, **weights, metrics=metrics)
        return replace(output, sum=output.sum + self._entropy_bonus(tokens, batch.totals))

    def total_weight(self, totals: StepTotals) -> float:
        """Tokens or completions of the step, as the normaliser has it."""
        return total_weight(self.normaliser, tokens=totals.supervised_tokens, sequences=totals.sequences)

    def _entropy_bonus(self, tokens: PolicyTokens, totals: StepTotals) -> Tensor | float:
        if not self.entropy_coef:
            return 0.0
        sizes = {"total_weight": self.total_weight(totals), "total_tokens": totals.supervised_tokens}
        return entropy_loss(tokens.entropies, tokens.kept, entropy_coef=self.entropy_coef, **sizes)

    def _importance(self, tokens: PolicyTokens, old_logps: Tensor) -> Tensor:
        """What corrects for an engine whose probabilities are not quite the trainer's."""
        where = (tokens.owner, tokens.num_sequences)
        settings = {"cap": self.importance_cap, "level": "token", "beyond": "truncate"}
        return truncated_importance(old_logps, tokens.sampled_token_logps, *where, **settings)
