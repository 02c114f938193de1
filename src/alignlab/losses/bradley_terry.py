"""Reward modelling from comparisons: Bradley and Terry's model (Biometrika 39, 1952) of which completion is preferred.

The probability that the chosen is preferred is σ(r(y_c) - r(y_r)), or with a margin m that says how clearly,
σ(r(y_c) - r(y_r) - m) (Llama 2, arXiv 2307.09288, eq. 2).
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
    """Negative log-likelihood of the comparisons, and how far rewards stray from zero.

    Args:
        rewards: One per completion, with gradient. Shape ``[S]``.
        group_ids: Group of each completion, ascending, the first of a group the chosen. Shape ``[S]``.
        margins: Of the row of each completion. Shape ``[S]``.
        weights: Of the row of each completion. Shape ``[S]``.
        centring: Weight of (r(y_c) + r(y_r))² (arXiv 2312.09244, eq. 2), which holds the mean near zero.

    Returns:
        One loss per pair, and what is logged of them.
    """
    index = pair_index(group_ids)
    chosen, rejected = rewards[index.chosen], rewards[index.rejected]
    lead = chosen - rejected
    asked = lead if margins is None else lead - margins[index.rejected]
    losses = centring * (chosen + rejected).square() - logsigmoid(asked)
    losses = losses if weights is None else losses * weights[index.rejected]
    return LossOutput([LossTerm(losses, "pairs")], _metrics(chosen.detach(), rejected.detach()))


def _metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Ratio]:
    lead = chosen - rejected
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": lead,
        "rewards/accuracies": (lead > 0).to(lead.dtype),
        "rewards/brier": torch.sigmoid(-lead).square(),
    }
    return {name: Ratio(value.sum(), value.new_tensor(value.numel())) for name, value in values.items()}
