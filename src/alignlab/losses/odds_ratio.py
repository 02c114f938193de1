"""Odds-ratio preference optimisation without a reference (ORPO, arXiv 2403.07691)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignlab.losses.preference import Pairs


def odds_ratio(pairs: Pairs) -> Tensor:
    """-log σ(log odds(chosen) - log odds(rejected)), odds of the geometric mean probability per token (eq. 4 and 7).

    Args:
        pairs: P pairs; the reference is ignored.

    Returns:
        Shape ``[P]``.
    """
    return -logsigmoid(log_odds(pairs.chosen / pairs.chosen_tokens) - log_odds(pairs.rejected / pairs.rejected_tokens))


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, accurate also near p = 1. Any shape."""
    return logps - torch.log(-torch.expm1(logps.clamp(max=-1e-12)))
