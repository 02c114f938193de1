"""Odds-ratio preference optimisation (ORPO, arXiv 2403.07691): imitation and preference in one, without a reference."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignlab.losses.preference import Pairs


def odds_ratio(pairs: Pairs) -> Tensor:
    """-log σ(log odds(chosen) - log odds(rejected)) of probabilities per token (eq. 4 and 7).

    Args:
        pairs: P pairs; the reference is not looked at.

    Returns:
        Shape ``[P]``.
    """
    return -logsigmoid(log_odds(pairs.chosen / pairs.chosen_tokens) - log_odds(pairs.rejected / pairs.rejected_tokens))


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, exact also near p = 1."""
    return logps - torch.log(-torch.expm1(logps.clamp(max=-1e-12)))
