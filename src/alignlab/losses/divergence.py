"""Scores of log-ratios for the f-divergences of f-DPO (arXiv 2309.16240, table 1).

A score is f'(u) of the ratio u = π / π_ref, up to constants that cancel between chosen and rejected. For the reverse
Kullback–Leibler divergence the score is the log-ratio itself, which gives plain DPO. Scores have the shape of the
log-ratios, and carry their gradient.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """f'(u) = log u + 1."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """f'(u) = -1/u."""
    return -torch.exp(-log_ratio)


def js_divergence(log_ratio: Tensor) -> Tensor:
    """f'(u) = log(2u / (1 + u)), Jensen–Shannon."""
    return logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, *, alpha: float) -> Tensor:
    """f'(u) = (u^(α-1) - 1) / (α - 1); α → 1 is the reverse, α = 0 the forward Kullback–Leibler divergence."""
    return torch.expm1((alpha - 1) * log_ratio) / (alpha - 1) if alpha != 1 else log_ratio
