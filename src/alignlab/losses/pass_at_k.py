"""Sets of k completions: the rate at which one of them passes, and advantages from the reward of the best.

All sets of k completions of a group are taken into account in closed form: for the rate as in arXiv 2107.03374, for the
advantages as in Pass@k training, arXiv 2508.10751.

1. Rewards may have any value, not only 0 and 1: the reward of a set is its largest (as in arXiv 2505.15201).
2. A group of fewer than k completions is a single set, and its advantages are 0.
"""

import torch
from torch import Tensor

from alignlab.losses.logps import segment_sums


def pass_at_k(rewards: Tensor, group_ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean reward of the sets of k that include a completion, minus the mean of all sets of its group.

    Sort the n rewards of a group in ascending order, from position 0. The completion at position p is the best of
    C(p, k - 1) of the C(n, k) sets. Of the C(n - 1, k - 1) sets that include another completion below p, it is the best
    of C(p - 1, k - 2).

    Args:
        rewards: None missing. Shape ``[S]``.
        group_ids: Group of each completion. Shape ``[S]``.
        k: Completions of a set, at least 1.

    Returns:
        The advantage before scaling, and the standard deviation over the sets of the group, in float64. Shapes ``[S]``.
    """
    by_reward = rewards.sort(stable=True).indices
    order = by_reward[group_ids[by_reward].sort(stable=True).indices]
    best, group = rewards[order].double(), group_ids[order]
    sizes = torch.bincount(group_ids)
    position = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[group]
    size = sizes[group]
    picked = size.clamp(max=k)

    sets, sets_of_one = _choose(size, picked), _choose(size - 1, picked - 1)
    led = _choose(position, picked - 1)  # sets of which this completion is the best
    mean = _sums(led / sets * best, group)[group]
    deviation = _sums(led / sets * (best - mean).square(), group)[group].sqrt()
    of_lower = _choose(position - 1, picked - 2) / sets_of_one * best  # added to each completion at a lower position
    led_by_better = _sums(of_lower, group).cumsum(0)[group] - of_lower.cumsum(0)
    advantage = led / sets_of_one * best + led_by_better - mean

    back = order.argsort()
    return advantage[back], deviation[back]


def pass_rate(num_passed: Tensor, num_completions: int, k: int) -> Tensor:
    """Probability that at least one of k completions passes: the unbiased estimate 1 - C(n - c, k) / C(n, k).

    Args:
        num_passed: c, the number of completions of each prompt that pass. Shape ``[P]``.
        num_completions: n, the number of completions of each prompt.
        k: Completions of a set, at most n.

    Returns:
        Shape ``[P]``, float64.
    """
    n = torch.full_like(num_passed, num_completions)
    size = torch.full_like(num_passed, k)
    return 1 - _choose(n - num_passed, size) / _choose(n, size)


def _sums(values: Tensor, group: Tensor) -> Tensor:
    return segment_sums(values, group, int(group.max()) + 1)


def _choose(n: Tensor, k: Tensor) -> Tensor:
    """C(n, k), 0 where k is not within 0…n; in float64. Shape as ``n``."""
    n, k = torch.broadcast_tensors(n.double(), k.double())
    inside = (k >= 0) & (k <= n)
    k, n = k.where(inside, 0), n.where(inside, 0)
    return torch.where(inside, (torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)).exp(), 0.0)
