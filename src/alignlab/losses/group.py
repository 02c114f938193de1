"""Losses over groups: one chosen completion against K ≥ 1 rejected ones, where K may differ between groups.

The reward of a completion is r(y) = β (log π(y|x) - log π_ref(y|x)), or that divided by its number of tokens. The hinge
is not from a paper:

    max(0, M - r(y_c) + α),   M = max r(y) over the rejected, or Σ r e^{λr} / Σ e^{λr} over the rejected.

The first M is the exact maximum: only the hardest rejected gets a gradient, the first of equally hard ones. The second
is smooth and tends to the first for λ → ∞. With K = 1 both give the pairwise hinge.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu, softplus

from alignlab.losses.logps import firsts, segment_sums
from alignlab.types.loss import Ratio


@dataclass(frozen=True)
class Groups:
    """Groups of a micro-batch.

    Args:
        rewards: Reward of each completion, with gradient. Shape ``[S]``.
        group_ids: Group of each completion, ascending from 0; the first of a group is the chosen. Shape ``[S]``.
        scores: Scores of the completions if the data has them, for rankings. Shape ``[S]``.
    """

    rewards: Tensor
    group_ids: Tensor
    scores: Tensor | None = None

    @property
    def num_groups(self) -> int:
        """B, the number of groups."""
        return int(self.group_ids[-1]) + 1

    @property
    def chosen(self) -> Tensor:
        """Rewards of the chosen. Shape ``[B]``."""
        return self.rewards[firsts(self.group_ids)]

    @property
    def rejected(self) -> tuple[Tensor, Tensor]:
        """Rewards of the rejected completions and their groups. Shapes ``[S - B]``."""
        others = ~firsts(self.group_ids)
        return self.rewards[others], self.group_ids[others]


def group_rewards(
    logps: Tensor, reference_logps: Tensor, tokens: Tensor, *, beta: float, length_normalised: bool
) -> Tensor:
    """Rewards of completions.

    Args:
        logps: Log-probabilities under the policy, with gradient. Shape ``[S]``.
        reference_logps: Log-probabilities under the reference; zeros without one. Shape ``[S]``.
        tokens: Supervised tokens of each completion. Shape ``[S]``.
        beta: Scale of the log-ratio; a larger one keeps the policy closer to the reference.
        length_normalised: Whether to divide by ``tokens``.

    Returns:
        Shape ``[S]``.
    """
    ratio = logps - reference_logps
    return beta * (ratio / tokens if length_normalised else ratio)


def group_hinge(
    groups: Groups, *, margin: Annotated[float, Field(ge=0)], inverse_temperature: Annotated[float, Field(gt=0)] | None
) -> Tensor:
    """max(0, M - r(y_c) + α).

    Args:
        groups: B groups.
        margin: α, by which the reward of the chosen must exceed M.
        inverse_temperature: λ of the smooth maximum; ``None`` for the exact one.

    Returns:
        Shape ``[B]``.
    """
    return relu(hardest(groups, inverse_temperature) - groups.chosen + margin)


def group_logistic(groups: Groups, *, inverse_temperature: Annotated[float, Field(gt=0)] | None) -> Tensor:
    """-log σ(r(y_c) - M): the logistic loss against the hardest. Shape ``[B]``."""
    return softplus(hardest(groups, inverse_temperature) - groups.chosen)


def group_softmax(groups: Groups) -> Tensor:
    """-log σ(-log Σ e^{r(y) - r(y_c)}) over the rejected (S-DPO, arXiv 2406.09215, eq. 11). Shape ``[B]``."""
    rewards, group_ids = groups.rejected
    return softplus(_logsumexp(rewards - groups.chosen[group_ids], group_ids, groups.num_groups))


def all_pairs(groups: Groups, *, margin: Annotated[float, Field(ge=0)]) -> Tensor:
    """Mean over the rejected of -log σ(r(y_c) - r(y) - α). Shape ``[B]``."""
    rewards, group_ids = groups.rejected
    losses = softplus(rewards - groups.chosen[group_ids] + margin)
    return segment_sums(losses, group_ids, groups.num_groups) / torch.bincount(group_ids, minlength=groups.num_groups)


def plackett_luce(groups: Groups) -> Tensor:
    """-log of the probability of the whole ranking (DPO, arXiv 2305.18290, eq. 18, appendix A.3). Shape ``[B]``.

    Completions are ranked by their scores. Without scores (NaN, or none at all), and for equal scores, the order of the
    data holds, with the chosen first.
    """
    order = _ranking(groups)
    rewards = groups.rewards[order]
    # log Σ over a completion and those ranked below it: a running logsumexp from the end of each group.
    sizes = torch.bincount(groups.group_ids)
    position = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[groups.group_ids]
    padded = rewards.new_full((groups.num_groups, int(sizes.max())), -torch.inf)
    padded = padded.index_put((groups.group_ids, position), rewards)
    normaliser = padded.flip(1).logcumsumexp(1).flip(1)[groups.group_ids, position]
    return segment_sums(normaliser - rewards, groups.group_ids, groups.num_groups)


def hardest(groups: Groups, inverse_temperature: float | None = None) -> Tensor:
    """M: the largest reward of the rejected, exact or as a softmax-weighted mean. Shape ``[B]``."""
    rewards, group_ids = groups.rejected
    if inverse_temperature is None:
        largest = groups.rewards[~firsts(groups.group_ids)][hardest_index(groups, flat=True)]
        unknown = segment_sums(rewards.detach().isnan().to(rewards.dtype), group_ids, groups.num_groups) > 0
        return largest.masked_fill(unknown, torch.nan)
    weights = inverse_temperature * rewards
    weights = (weights - _logsumexp(weights, group_ids, groups.num_groups)[group_ids]).exp()
    return segment_sums(weights * rewards, group_ids, groups.num_groups)


def hardest_index(groups: Groups, flat: bool = False) -> Tensor:
    """Index of the rejected completion with the largest reward, the first of equal ones; without gradient.

    Args:
        groups: B groups.
        flat: Count from the first rejected of the micro-batch instead of the first of the group.

    Returns:
        Counts from 0. Shape ``[B]``.
    """
    rewards, group_ids = (value.detach() for value in groups.rejected)
    indices = torch.arange(len(group_ids), device=group_ids.device)
    best = rewards.new_full((groups.num_groups,), -torch.inf).scatter_reduce(0, group_ids, rewards, "amax")
    candidates = torch.where(rewards == best[group_ids], indices, len(group_ids))
    found = torch.full_like(best, len(group_ids), dtype=torch.long).scatter_reduce(0, group_ids, candidates, "amin")
    found = found.clamp(max=len(group_ids) - 1)  # rewards that are not numbers equal nothing; their loss is none either
    sizes = torch.bincount(group_ids, minlength=groups.num_groups)
    return found if flat else found - (sizes.cumsum(0) - sizes)


def group_metrics(groups: Groups, losses: Tensor) -> dict[str, Ratio]:
    """Rewards, margins to the hardest and to the mean, accuracy, share of groups with a loss above 0, and K.

    Args:
        groups: B groups.
        losses: Loss of each group. Shape ``[B]``.
    """
    rewards, group_ids = (value.detach() for value in groups.rejected)
    chosen, largest = groups.chosen.detach(), hardest(groups).detach()
    sizes = torch.bincount(group_ids, minlength=groups.num_groups)
    mean = segment_sums(rewards, group_ids, groups.num_groups) / sizes
    index = hardest_index(groups).to(chosen.dtype)
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": mean,
        "rewards/margins": chosen - mean,
        "rewards/margins_hardest": chosen - largest,
        "rewards/accuracies": (chosen > largest).to(chosen.dtype),
        "group/active_fraction": (losses.detach() > 0).to(chosen.dtype),
        "group/hardest_place": index / (sizes - 1).clamp(min=1),
        "group/num_rejected": sizes.to(chosen.dtype),
    }
    count = chosen.new_tensor(groups.num_groups)
    return {name: Ratio(value.sum(), count) for name, value in values.items()}


def _ranking(groups: Groups) -> Tensor:
    """Indices of the completions, sorted by group and within it by descending score. Shape ``[S]``."""
    if groups.scores is None:
        return torch.arange(len(groups.group_ids), device=groups.group_ids.device)
    best_first = groups.scores.sort(descending=True, stable=True).indices
    return best_first[groups.group_ids[best_first].sort(stable=True).indices]


def _logsumexp(values: Tensor, group_ids: Tensor, num_groups: int) -> Tensor:
    peak = values.detach().new_full((num_groups,), -torch.inf).scatter_reduce(0, group_ids, values.detach(), "amax")
    return peak + segment_sums((values - peak[group_ids]).exp(), group_ids, num_groups).log()
