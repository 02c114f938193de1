"""Advantages from the rewards of completions, in groups of any size that share a prompt.

    grpo                 reward - mean of the group                            (arXiv 2402.03300)
    rloo                 reward - mean of the rest of the group                (arXiv 2402.14740)
    reinforce_plus_plus  reward - mean of the batch                            (arXiv 2501.03262)
    remax                reward - reward of the greedy completion              (arXiv 2310.10505)
    pass_at_k            mean of the sets of k that include it - mean of all   (arXiv 2508.10751)

The caller gathers the rewards of a whole rollout or step from all ranks. A missing reward is NaN: it is left out of
every mean and its advantage is 0.

1. Standard deviations are sample deviations (n - 1), plus 1e-4.
2. The ``group`` scale of ``pass_at_k`` is the deviation over all sets (n), plus 1e-4.
"""

from typing import Literal

import torch
from torch import Tensor

from alignlab.errors import InputError
from alignlab.losses.logps import segment_sums
from alignlab.losses.pass_at_k import pass_at_k
from alignlab.types.loss import Ratio

Estimator = Literal["grpo", "rloo", "reinforce_plus_plus", "remax", "pass_at_k"]
Scale = Literal["group", "batch", "whiten", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]

EPSILON = 1e-4
"""Added to standard deviations."""

SAME = 1e-8
"""Rewards of a group that differ by at most this much count as equal."""


def advantages(
    rewards: Tensor,
    weights: Tensor,
    group_ids: Tensor,
    *,
    aggregation: Aggregation,
    estimator: Estimator,
    scale: Scale,
    num_picked: int = 1,
    greedy_rewards: Tensor | None = None,
) -> Tensor:
    """Advantages from several rewards.

    Args:
        rewards: One column per reward, NaN where it is missing. Shape ``[S, R]``.
        weights: Weight of each reward. Shape ``[R]``.
        group_ids: Group of each completion, ascending. Shape ``[S]``.
        aggregation: ``sum_then_normalize`` estimates from the weighted sum; ``normalize_then_sum`` estimates from each
            reward separately and whitens the weighted sum of the estimates (GDPO, arXiv 2601.05242).
        estimator: Which baseline is subtracted from a reward.
        scale: What the difference is divided by, see ``estimate``.
        num_picked: k of ``pass_at_k``.
        greedy_rewards: Rewards of the greedy completion of the same prompt, for ``remax``. Shape ``[S, R]``.

    Returns:
        Without gradient; 0 where every reward is missing. Shape ``[S]``.
    """
    settings = {"estimator": estimator, "scale": scale, "num_picked": num_picked}
    if aggregation == "sum_then_normalize":
        greedy = None if greedy_rewards is None else weighted_sum(greedy_rewards, weights)
        return estimate(weighted_sum(rewards, weights), group_ids, **settings, greedy_rewards=greedy)
    columns = rewards.unbind(1)
    greedy = [None] * len(columns) if greedy_rewards is None else greedy_rewards.unbind(1)
    estimates = [
        estimate(column, group_ids, **settings, greedy_rewards=greedy_column)
        for column, greedy_column in zip(columns, greedy, strict=True)
    ]
    total = torch.stack(estimates, 1) @ weights.to(rewards.dtype)
    return _apply_where(~rewards.isnan().all(1), total, standardise)


def weighted_sum(rewards: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the rewards; a missing reward counts as 0, and the sum is NaN if all are missing.

    Args:
        rewards: NaN where it is missing. Shape ``[S, R]``.
        weights: Weight of each reward. Shape ``[R]``.

    Returns:
        Shape ``[S]``.
    """
    return (rewards.nan_to_num(nan=0.0) @ weights.to(rewards.dtype)).masked_fill(rewards.isnan().all(1), torch.nan)


def estimate(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    estimator: Estimator,
    scale: Scale,
    num_picked: int = 1,
    greedy_rewards: Tensor | None = None,
) -> Tensor:
    """Advantages from one reward.

    Args:
        rewards: NaN where it is missing. Shape ``[S]``.
        group_ids: Group of each completion, ascending. Shape ``[S]``.
        estimator: Which baseline is subtracted from a reward.
        scale: ``group`` and ``batch`` divide by the standard deviation of the rewards of the group or of all
            completions, ``whiten`` brings all advantages to mean 0 and deviation 1, ``none`` leaves them unscaled.
        num_picked: k of ``pass_at_k``.
        greedy_rewards: Rewards of the greedy completion of the same prompt, for ``remax``. Shape ``[S]``.

    Returns:
        Shape ``[S]``.

    Raises:
        InputError: ``remax`` without greedy rewards.
    """
    scored = ~rewards.isnan()
    if estimator == "remax":
        if greedy_rewards is None:
            raise InputError("advantages by remax", "the greedy completions have no reward", "Sample them too")
        scored = scored & ~greedy_rewards.isnan()
        greedy_rewards = greedy_rewards[scored]
    return _apply_where(
        scored, rewards, lambda found: _estimate(found, group_ids[scored], estimator, scale, num_picked, greedy_rewards)
    )


def _estimate(
    rewards: Tensor, group_ids: Tensor, estimator: Estimator, scale: Scale, num_picked: int, greedy: Tensor | None
) -> Tensor:
    if estimator == "pass_at_k":
        centred, deviation = pass_at_k(rewards, group_ids, num_picked)
    else:
        centred, deviation = rewards - BASELINES[estimator](rewards, group_ids, greedy), None
    if scale == "group":
        return centred / ((group_std(rewards, group_ids) if deviation is None else deviation) + EPSILON)
    if scale == "batch":
        return centred / (_std(rewards) + EPSILON)
    return standardise(centred) if scale == "whiten" else centred


def group_mean(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Mean reward of each completion's group.

    Args:
        rewards: None missing. Shape ``[S]``.
        group_ids: Group of each completion, ascending. Shape ``[S]``.

    Returns:
        Shape ``[S]``.
    """
    return (_sums(rewards, group_ids) / _sizes(group_ids, rewards))[group_ids]


def group_std(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Standard deviation (n - 1) of the rewards of each completion's group; 0 in a group of one.

    Args:
        rewards: None missing. Shape ``[S]``.
        group_ids: Group of each completion, ascending. Shape ``[S]``.

    Returns:
        Shape ``[S]``.
    """
    squares = _sums((rewards - group_mean(rewards, group_ids)).square(), group_ids)
    return (squares / (_sizes(group_ids, rewards) - 1).clamp(min=1)).sqrt()[group_ids]


def others_mean(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Mean reward of the other completions of the group; the completion's own reward in a group of one.

    Args:
        rewards: None missing. Shape ``[S]``.
        group_ids: Group of each completion, ascending. Shape ``[S]``.

    Returns:
        Shape ``[S]``.
    """
    sizes = _sizes(group_ids, rewards)[group_ids]
    return torch.where(sizes > 1, (_sums(rewards, group_ids)[group_ids] - rewards) / (sizes - 1).clamp(min=1), rewards)


BASELINES = {
    "grpo": lambda rewards, group_ids, greedy: group_mean(rewards, group_ids),
    "rloo": lambda rewards, group_ids, greedy: others_mean(rewards, group_ids),
    "reinforce_plus_plus": lambda rewards, group_ids, greedy: rewards.mean(),
    "remax": lambda rewards, group_ids, greedy: greedy,
}


def standardise(values: Tensor) -> Tensor:
    """Shift values to mean 0 and divide by their standard deviation (n - 1) plus ``EPSILON``. Shape ``[M]``."""
    return (values - values.mean()) / (_std(values) + EPSILON)


def flat_groups(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Groups without a learning signal: all their rewards are equal or missing.

    Args:
        rewards: NaN where it is missing. Shape ``[S]``.
        group_ids: Group of each completion, every group present. Shape ``[S]``.

    Returns:
        Shape ``[B]``, bool; ``~flat_groups(…)[group_ids]`` masks their completions out of the loss.
    """
    lowest, highest = _extremes(rewards, group_ids)
    return ~(highest - lowest > SAME)


def group_metrics(rewards: Tensor, group_ids: Tensor, *, right_reward: float) -> dict[str, Ratio]:
    """Share of the groups whose rewards are all equal, and of those that are all right or all wrong.

    Args:
        rewards: NaN where it is missing. Shape ``[S]``.
        group_ids: Group of each completion, every group present. Shape ``[S]``.
        right_reward: Lowest reward of a completion that counts as right.
    """
    flat, (lowest, highest) = flat_groups(rewards, group_ids), _extremes(rewards, group_ids)
    shares = {
        "zero_std_groups": flat,
        "zero_std_groups_right": flat & (lowest >= right_reward) & highest.isfinite(),
        "zero_std_groups_wrong": flat & (highest < right_reward) & lowest.isfinite(),
    }
    return {name: Ratio(share.sum(), share.new_tensor(len(flat), dtype=torch.long)) for name, share in shares.items()}


def _extremes(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest and highest known reward of each group, infinite where none is known. Shapes ``[B]``."""
    lowest, highest = (
        rewards.new_full((int(group_ids.max()) + 1,), bound).scatter_reduce(
            0, group_ids, rewards.nan_to_num(nan=bound), how
        )
        for bound, how in ((torch.inf, "amin"), (-torch.inf, "amax"))
    )
    return lowest, highest


def _apply_where(mask: Tensor, values: Tensor, function) -> Tensor:
    """Apply a function to the values in a mask, and set the others to 0. Shape ``[S]``."""
    result = torch.zeros_like(values)
    return result.masked_scatter(mask, function(values[mask]).to(values.dtype)) if mask.any() else result


def _std(values: Tensor) -> Tensor:
    return ((values - values.mean()).square().sum() / max(values.numel() - 1, 1)).sqrt()


def _sums(values: Tensor, group_ids: Tensor) -> Tensor:
    return segment_sums(values, group_ids, int(group_ids.max()) + 1)


def _sizes(group_ids: Tensor, like: Tensor) -> Tensor:
    return torch.bincount(group_ids).to(like)
