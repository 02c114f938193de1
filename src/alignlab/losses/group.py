"""Losses over groups: one chosen completion against K ≥ 1 rejected ones, K differing from group to group.

The reward of a completion is r(y) = β (log π(y|x) - log π_ref(y|x)), or that per token. The hinge is the house's own:

    max(0, M - r(y_c) + α),   M = max r(y) over the rejected, or Σ r e^{λr} / Σ e^{λr} over them,

the first exactly (the gradient reaches the hardest rejected alone; of several equally hard ones the first), the second
smooth; λ → ∞ makes them equal, and with K = 1 both are the pairwise hinge.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import relu, softplus

from alignlab.losses.logps import firsts
from alignlab.types.loss import Ratio


@dataclass(frozen=True)
class Groups:
    """Groups of a micro-batch.

    Args:
        rewards: Of every completion, with gradient. Shape ``[S]``.
        tree: Group of each completion, ascending from 0; the first of a group is the chosen. Shape ``[S]``.
        scores: Scores of the completions where the data has them, for rankings. Shape ``[S]``.
    """

    rewards: Tensor
    tree: Tensor
    scores: Tensor | None = None

    @property
    def num_groups(self) -> int:
        """B."""
        return int(self.tree[-1]) + 1

    @property
    def chosen(self) -> Tensor:
        """Rewards of the chosen. Shape ``[B]``."""
        return self.rewards[firsts(self.tree)]

    @property
    def rejected(self) -> tuple[Tensor, Tensor]:
        """Rewards of the rejected ones and their groups. Shapes ``[S - B]``."""
        others = ~firsts(self.tree)
        return self.rewards[others], self.tree[others]


def group_rewards(
    logps: Tensor, reference_logps: Tensor, tokens: Tensor, *, beta: float, length_normalised: bool
) -> Tensor:
    """Rewards of completions.

    Args:
        logps: Under the policy, with gradient. Shape ``[S]``.
        reference_logps: Under the reference; zeros without one. Shape ``[S]``.
        tokens: Supervised tokens. Shape ``[S]``.
        beta: Strength of the pull towards the reference.
        length_normalised: Per token.
    """
    ratio = logps - reference_logps
    return beta * (ratio / tokens if length_normalised else ratio)


def group_hinge(
    groups: Groups, *, margin: Annotated[float, Field(ge=0)], sharpness: Annotated[float, Field(gt=0)] | None
) -> Tensor:
    """max(0, M - r(y_c) + α).

    Args:
        groups: B groups.
        margin: α, by which the chosen must lead.
        sharpness: λ of the smooth maximum; ``None`` for the exact one.

    Returns:
        Shape ``[B]``.
    """
    return relu(hardest(groups, sharpness) - groups.chosen + margin)


def group_logistic(groups: Groups, *, sharpness: Annotated[float, Field(gt=0)] | None) -> Tensor:
    """-log σ(r(y_c) - M): the logistic loss against the hardest. Shape ``[B]``."""
    return softplus(hardest(groups, sharpness) - groups.chosen)


def group_softmax(groups: Groups) -> Tensor:
    """-log σ(-log Σ e^{r(y) - r(y_c)}): softmax over all (S-DPO, arXiv 2406.09215, eq. 11). Shape ``[B]``."""
    rewards, tree = groups.rejected
    return softplus(_logsumexp(rewards - groups.chosen[tree], tree, groups.num_groups))


def all_pairs(groups: Groups, *, margin: Annotated[float, Field(ge=0)]) -> Tensor:
    """Mean over the rejected of -log σ(r(y_c) - r(y) - α). Shape ``[B]``."""
    rewards, tree = groups.rejected
    losses = softplus(rewards - groups.chosen[tree] + margin)
    return _sums(losses, tree, groups.num_groups) / torch.bincount(tree, minlength=groups.num_groups)


def plackett_luce(groups: Groups) -> Tensor:
    """-log of the probability of the whole ranking (DPO, arXiv 2305.18290, eq. 18, appendix A.3). Shape ``[B]``.

    Completions rank by their scores; without scores, and among equal ones, as they stand: the chosen first.
    """
    order = _ranking(groups)
    rewards = groups.rewards[order]
    # log Σ over a completion and those behind it: a running logsumexp from the end of each group.
    sizes = torch.bincount(groups.tree)
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[groups.tree]
    padded = rewards.new_full((groups.num_groups, int(sizes.max())), -torch.inf)
    padded = padded.index_put((groups.tree, place), rewards)
    behind = padded.flip(1).logcumsumexp(1).flip(1)[groups.tree, place]
    return _sums(behind - rewards, groups.tree, groups.num_groups)


def hardest(groups: Groups, sharpness: float | None = None) -> Tensor:
    """M: the largest reward among the rejected, exactly or as a softmax-weighted mean. Shape ``[B]``."""
    rewards, tree = groups.rejected
    if sharpness is None:
        return groups.rewards[~firsts(groups.tree)][hardest_place(groups, flat=True)]
    weights = sharpness * rewards
    weights = (weights - _logsumexp(weights, tree, groups.num_groups)[tree]).exp()
    return _sums(weights * rewards, tree, groups.num_groups)


def hardest_place(groups: Groups, flat: bool = False) -> Tensor:
    """Place of the hardest among the rejected of its group, the first of equals; without gradient.

    Args:
        groups: B groups.
        flat: Count over the rejected of all groups instead.

    Returns:
        Shape ``[B]``, from 0.
    """
    rewards, tree = (value.detach() for value in groups.rejected)
    places = torch.arange(len(tree), device=tree.device)
    best = rewards.new_full((groups.num_groups,), -torch.inf).scatter_reduce(0, tree, rewards, "amax")
    candidates = torch.where(rewards == best[tree], places, len(tree))
    found = torch.full_like(best, len(tree), dtype=torch.long).scatter_reduce(0, tree, candidates, "amin")
    sizes = torch.bincount(tree, minlength=groups.num_groups)
    return found if flat else found - (sizes.cumsum(0) - sizes)


def group_metrics(groups: Groups, margin: float) -> dict[str, Ratio]:
    """Rewards, margins to the hardest and to the mean, accuracy, share of groups within the margin, and K."""
    rewards, tree = (value.detach() for value in groups.rejected)
    chosen, worst = groups.chosen.detach(), hardest(groups).detach()
    sizes = torch.bincount(tree, minlength=groups.num_groups)
    mean = _sums(rewards, tree, groups.num_groups) / sizes
    place = hardest_place(groups).to(chosen.dtype)
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": mean,
        "rewards/margins": chosen - mean,
        "rewards/margins_hardest": chosen - worst,
        "rewards/accuracies": (chosen > worst).to(chosen.dtype),
        "group/active_fraction": (worst - chosen + margin > 0).to(chosen.dtype),
        "group/hardest_place": place / (sizes - 1).clamp(min=1),
        "group/num_rejected": sizes.to(chosen.dtype),
    }
    count = chosen.new_tensor(groups.num_groups)
    return {name: Ratio(value.sum(), count) for name, value in values.items()}


def _ranking(groups: Groups) -> Tensor:
    """Completions by group, the best first. Shape ``[S]``."""
    if groups.scores is None:
        return torch.arange(len(groups.tree), device=groups.tree.device)
    best_first = groups.scores.sort(descending=True, stable=True).indices
    return best_first[groups.tree[best_first].sort(stable=True).indices]


def _sums(values: Tensor, tree: Tensor, num_groups: int) -> Tensor:
    return values.new_zeros(num_groups).index_add(0, tree, values)


def _logsumexp(values: Tensor, tree: Tensor, num_groups: int) -> Tensor:
    peak = values.detach().new_full((num_groups,), -torch.inf).scatter_reduce(0, tree, values.detach(), "amax")
    return peak + _sums((values - peak[tree]).exp(), tree, num_groups).log()
