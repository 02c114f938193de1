"""Scores of log-ratios for the f-divergences of f-DPO (arXiv 2309.16240, table 1).

A score is f'(u) of the ratio u = π / π_ref, up to constants that cancel between chosen and rejected. For the reverse
Kullback–Leibler divergence the score is the log-ratio itself, which gives plain DPO. Scores have the shape of the
log-ratios, and carry their gradient.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST_EXPONENT = 30.0
"""Exponent from which on the exponential goes on as its tangent. Completions of a few hundred tokens have log-ratios of
-100, where the exponential has no float32 value. A margin of β times e^30 is far beyond any other anyway."""


def extended_exp(exponent: Tensor) -> Tensor:
    """The exponential, continued as its tangent from ``LARGEST_EXPONENT`` on, so that it and its gradient are finite.

    Args:
        exponent: Any shape.
    """
    largest = math.exp(LARGEST_EXPONENT)
    return exponent.clamp(max=LARGEST_EXPONENT).exp() + largest * (exponent - LARGEST_EXPONENT).clamp(min=0)


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """f'(u) = log u + 1."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """f'(u) = -1/u."""
    return -extended_exp(-log_ratio)


def js_divergence(log_ratio: Tensor) -> Tensor:
    """f'(u) = log(2u / (1 + u)), Jensen–Shannon."""
    return logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, *, alpha: float) -> Tensor:
    """f'(u) = (u^(α-1) - 1) / (α - 1); α → 1 is the reverse, α = 0 the forward Kullback–Leibler divergence."""
    if alpha == 1:
        return log_ratio
    exponent = (alpha - 1) * log_ratio
    small = exponent.clamp(max=1.0)  # where expm1 is more precise
    return torch.where(exponent > 1, extended_exp(exponent) - 1, torch.expm1(small)) / (alpha - 1)
