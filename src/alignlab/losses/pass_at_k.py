"""Advantages of completions as members of sets of k, of which the best counts (Pass@k training, arXiv 2508.10751).

All sets of k completions of a group are seen at once, in closed form, as the paper does.

1. Rewards may have any value, not 0 and 1 alone: a set has the reward of its best (as in arXiv 2505.15201).
2. In a group of fewer than k all completions are the one set, from which nothing is learned.
"""

import torch
from torch import Tensor


def pass_at_k(rewards: Tensor, group_ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How much better than all sets of k those sets are that a completion is in.

    With the rewards of a group in ascending order from place 0, the best of a set stands at place p in C(p, k - 1) of
    the C(n, k) sets; of the C(n - 1, k - 1) sets with a certain other one, below p, in C(p - 1, k - 2).

    Args:
        rewards: None missing. Shape ``[S]``.
        group_ids: Group of each completion. Shape ``[S]``.
        k: Completions of a set, at least 1.

    Returns:
        The advantage before scaling, and the deviation over the sets of the group, in float64. Shapes ``[S]``.
    """
    by_reward = rewards.sort(stable=True).indices
    order = by_reward[group_ids[by_reward].sort(stable=True).indices]
    best, group = rewards[order].double(), group_ids[order]
    sizes = torch.bincount(group_ids)
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group]
    size = sizes[group]
    picked = size.clamp(max=k)

    sets, sets_of_one = _choose(size, picked), _choose(size - 1, picked - 1)
    led = _choose(place, picked - 1)  # sets of which this completion is the best
    mean = _sums(led / sets * best, group)[group]
    deviation = _sums(led / sets * (best - mean).square(), group)[group].sqrt()
    beside = _choose(place - 1, picked - 2) / sets_of_one * best
    led_by_better = _sums(beside, group).cumsum(0)[group] - beside.cumsum(0)
    advantage = led / sets_of_one * best + led_by_better - mean

    back = order.argsort()
    return advantage[back], deviation[back]


def _sums(values: Tensor, group: Tensor) -> Tensor:
    return values.new_zeros(int(group.max()) + 1).index_add(0, group, values)


def _choose(n: Tensor, k: Tensor) -> Tensor:
    """C(n, k), 0 where k is not within 0…n; in float64. Shape as ``n``."""
    n, k = torch.broadcast_tensors(n.double(), k.double())
    inside = (k >= 0) & (k <= n)
    k, n = k.where(inside, 0), n.where(inside, 0)
    return torch.where(inside, (torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)).exp(), 0.0)
