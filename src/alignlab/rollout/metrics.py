"""What is logged of a rollout as a whole."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.losses.advantages import group_metrics
from alignlab.rollout.groups import Group


def rollout_metrics(groups: Sequence[Group], right_reward: float) -> dict[str, float]:
    """Rewards in all and by name, lengths, cut completions, and groups without spread.

    Args:
        groups: All that was sampled.
        right_reward: Reward from which on a completion counts as right.
    """
    totals = torch.tensor([total for group in groups for total in group.totals], dtype=torch.float64)
    group_ids = torch.tensor([index for index, group in enumerate(groups) for _ in group.totals])
    completions = [completion for group in groups for completion in group.completions]
    lengths = torch.tensor([len(completion.tokens) for completion in completions], dtype=torch.float64)
    by_name = {
        name: torch.tensor([value for group in groups for value in group.rewards[name]], dtype=torch.float64)
        for name in groups[0].rewards
    }
    metrics = {
        **_mean_and_spread("reward", totals),
        **{key: value for name, values in by_name.items() for key, value in _named(name, values).items()},
        "reward/failed": sum(count > 0 for group in groups for count in group.failed) / len(completions),
        "completion_tokens/mean": lengths.mean(),
        "completion_tokens/max": lengths.max(),
        "truncated_fraction": 1 - sum(completion.finished for completion in completions) / len(completions),
        **{
            key: ratio.sum / ratio.weight
            for key, ratio in group_metrics(totals, group_ids, right_reward=right_reward).items()
        },
    }
    return {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}


def _named(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"reward/{name}": values.nanmean(), f"reward/{name}_std": _std(values)}


def _mean_and_spread(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}/mean": values.nanmean(), f"{name}/std": _std(values)}


def _std(values: Tensor) -> Tensor:
    known = values[~values.isnan()]
    return known.std(correction=min(1, max(known.numel() - 1, 0)))
