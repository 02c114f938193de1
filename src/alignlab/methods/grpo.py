"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) and its family.

A completion is as good as its reward is above those of the others to the same prompt. Estimator, scale, loss,
normaliser and divergence are each a choice; see ``losses.advantages``, ``losses.policy_gradient`` and ``losses.kl``.

1. Means are over the whole optimizer step, not over what a device holds at a time.
2. Completions and groups that are left out are not in the batch: neither loss, divergence nor denominator knows them.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field

from alignlab.batches import LossOutput, MicroBatch, StepTotals
from alignlab.losses.advantages import Aggregation, Estimator, Scale, advantages
from alignlab.losses.entropy import entropy_loss
from alignlab.losses.importance import truncated_importance
from alignlab.losses.kl import KLEstimator, KLGradient, kl_losses
from alignlab.losses.normaliser import Normaliser, total_weight, weigh
from alignlab.losses.policy_gradient import PolicyLoss, PolicyTokens, policy_metrics
from alignlab.methods.online import Online
from alignlab.models.scoring import token_scores
from alignlab.rollout.experience import Group

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
        super().__init__(reference=reference if kl_coef > 0 else "none", **parts)
        self.loss, self.normaliser = loss, normaliser
        self.estimate = {"estimator": estimator, "scale": scale, "aggregation": aggregation, "num_picked": num_picked}
        self.kl_coef, self.entropy_coef, self.importance_cap = kl_coef, entropy_coef, importance_cap
        self.kl = {"estimator": kl_estimator, "gradient": kl_gradient}

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        """Over the whole rollout, in float64."""
        names = list(groups[0].rewards)
        rewards = torch.tensor([list(one) for group in groups for one in self._columns(group, names)]).double()
        tree = torch.tensor([index for index, group in enumerate(groups) for _ in group.texts])
        weights = torch.tensor([self.scorer.weights[name] for name in names], dtype=torch.float64)
        found = advantages(rewards, weights, tree, **self.estimate)
        return [part.tolist() for part in found.split([len(group.texts) for group in groups])]

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Losses of the tokens with the divergence added, each weighed as the normaliser has it."""
        scores = token_scores(self.policy, batch, temperature=self.temperature, want=("entropies",))
        tokens = PolicyTokens(
            token_logps=scores.logps,
            advantages=batch.numbers["advantages"][batch.owner],
            owner=batch.owner,
            num_sequences=batch.num_sequences,
            old_token_logps=batch.token_numbers.get("old_logps"),
            reference_token_logps=self.reference_token_logps(batch) if self.kl_coef else None,
            sampled_token_logps=batch.token_numbers.get("sampled_logps"),
            entropies=scores.entropies,
        )
        policy_loss = self.loss(tokens)
        losses = policy_loss.losses
        if tokens.sampled_token_logps is not None:
            losses = losses * self._importance(tokens)
        if self.kl_coef:
            arguments = (tokens.token_logps, tokens.reference_token_logps, tokens.old_token_logps)
            losses = losses + self.kl_coef * kl_losses(*arguments, **self.kl)
        output = weigh(
            losses,
            tokens.owner,
            tokens.sequence_mask,
            normaliser=self.normaliser,
            max_completion_tokens=self.max_completion_tokens,
            metrics=policy_metrics(tokens, policy_loss),
        )
        if not self.entropy_coef:
            return output
        bonus = entropy_loss(
            scores.entropies,
            tokens.kept,
            entropy_coef=self.entropy_coef,
            total_weight=self.total_weight(batch.totals),
            total_tokens=batch.totals.supervised_tokens,
        )
        return LossOutput(output.sum + bonus, output.weight, output.metrics)

    def total_weight(self, totals: StepTotals) -> float:
        """Tokens or completions of the step, as the normaliser has it."""
        return total_weight(self.normaliser, tokens=totals.supervised_tokens, sequences=totals.sequences)

    def _importance(self, tokens: PolicyTokens) -> torch.Tensor:
        return truncated_importance(
            tokens.old_token_logps,
            tokens.sampled_token_logps,
            tokens.owner,
            tokens.num_sequences,
            cap=self.importance_cap,
            level="token",
            beyond="truncate",
        )

    @staticmethod
    def _columns(group: Group, names: Sequence[str]):
        return zip(*(group.rewards[name] for name in names), strict=True)
