"""Losses of unpaired completions, each desirable or undesirable: KTO (arXiv 2402.01306).

1. The reference point is the mean log-ratio of prompts with completions of other rows over the whole optimizer step,
   clamped at 0 and without gradient; the paper uses the mean of a micro-batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def reference_point(log_ratio_sum: Tensor, count: Tensor) -> Tensor:
    """z_0, the estimate of the divergence between policy and reference (section 4.1), at least 0.

    Args:
        log_ratio_sum: Sum of the log-ratios of mismatched completions over the step. Shape ``[]``.
        count: Number of these completions. Shape ``[]``.

    Returns:
        Without gradient. Shape ``[]``.
    """
    return (log_ratio_sum / count.clamp(min=1)).clamp(min=0).detach()


class LogRatios(NamedTuple):
    """Log-ratios of policy and reference of the completions of a micro-batch.

    Args:
        values: r, with gradient. Shape ``[S]``.
        desirable: Whether the completion is desirable. Shape ``[S]``, bool.
        reference_point: z_0. Shape ``[]``.
    """

    values: Tensor
    desirable: Tensor
    reference_point: Tensor


def kto(ratios: LogRatios, *, beta: float) -> Tensor:
    """1 - v(x, y): 1 - σ(β(r - z_0)) of a desirable completion, 1 - σ(β(z_0 - r)) of another (eq. 8).

    Args:
        ratios: Of S completions.
        beta: Scale of the log-ratios; a larger one keeps the policy closer to the reference.

    Returns:
        Shape ``[S]``.
    """
    return _loss(ratios, ratios.reference_point, beta)


def apo_zero_unpaired(ratios: LogRatios, *, beta: float) -> Tensor:
    """The same against 0 instead of z_0 (APO-zero, arXiv 2408.06266, without pairs).

    Args and returns as in ``kto``.
    """
    return _loss(ratios, torch.zeros_like(ratios.reference_point), beta)


def _loss(ratios: LogRatios, point: Tensor, beta: float) -> Tensor:
    sign = torch.where(ratios.desirable, 1.0, -1.0).to(ratios.values.dtype)
    return torch.sigmoid(-beta * sign * (ratios.values - point))
