"""Metrics of a rollout."""

import math

import torch
from torch import Tensor

from alignlab.losses.advantages import group_metrics
from alignlab.rollout.rollout import Rollout


def rollout_metrics(rollout: Rollout, right_reward: float) -> dict[str, float]:
    """Rewards in total and by name, completion lengths, truncation, and groups whose rewards are all equal.

    Args:
        rollout: A rollout, before filtering.
        right_reward: Lowest reward of a completion that counts as right.
    """
    total, lengths = rollout.columns["reward"], rollout.completions.lengths.double()
    by_name = {name: values for name, values in rollout.columns.items() if name.startswith("reward/")}
    metrics = {
        "reward/mean": total.nanmean(),
        "reward/std": _std(total),
        **means_by_name(by_name),
        "reward/failed": (rollout.columns["num_failed_rewards"] > 0).double().mean(),
        "completion_tokens/mean": lengths.mean(),
        "completion_tokens/max": lengths.max(),
        "truncated_fraction": 1 - rollout.completions.finished.double().mean(),
        **{
            name: ratio.sum / ratio.weight
            for name, ratio in group_metrics(total, rollout.group_ids, right_reward=right_reward).items()
        },
    }
    return {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}


def means_by_name(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean and standard deviation of each reward, each ``[]``."""
    return {
        key: value
        for name, values in columns.items()
        for key, value in ((name, values.nanmean()), (f"{name}_std", _std(values)))
    }


def _std(values: Tensor) -> Tensor:
    known = values[~values.isnan()]
    return known.std(correction=min(1, known.numel() - 1)) if known.numel() else known.sum() * torch.nan
