"""Reward modelling from comparisons with the model of Bradley and Terry (Biometrika 39, 1952).

The probability that the chosen completion is preferred is σ(r(y_c) - r(y_r)), or σ(r(y_c) - r(y_r) - m) with a margin m
for how clearly it is preferred (Llama 2, arXiv 2307.09288, eq. 2).
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignlab.losses.logps import pair_index
from alignlab.types.loss import LossOutput, LossTerm, Ratio


def bradley_terry(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    margins: Tensor | None,
    weights: Tensor | None,
    centring: float,
) -> LossOutput:
    """Negative log-likelihood of the comparisons, plus a penalty on rewards far from zero.

    Args:
        rewards: One per completion, with gradient. Shape ``[S]``.
        group_ids: Group of each completion, ascending; the first of a group is the chosen. Shape ``[S]``.
        margins: Margin of the row of each completion. Shape ``[S]``.
        weights: Weight of the row of each completion. Shape ``[S]``.
        centring: Weight of (r(y_c) + r(y_r))² (arXiv 2312.09244, eq. 2), which keeps the mean reward near zero.

    Returns:
        One loss per pair, and metrics.
    """
    index = pair_index(group_ids)
    chosen, rejected = rewards[index.chosen], rewards[index.rejected]
    difference = chosen - rejected
    logits = difference if margins is None else difference - margins[index.rejected]
    losses = centring * (chosen + rejected).square() - logsigmoid(logits)
    losses = losses if weights is None else losses * weights[index.rejected]
    return LossOutput([LossTerm(losses, "pairs")], _metrics(chosen.detach(), rejected.detach()))


def _metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Ratio]:
    difference = chosen - rejected
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": difference,
        "rewards/accuracies": (difference > 0).to(difference.dtype),
        "rewards/brier": torch.sigmoid(-difference).square(),
    }
    return {name: Ratio(value.sum(), value.new_tensor(value.numel())) for name, value in values.items()}
