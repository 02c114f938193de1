"""Losses for imitation: negative log-likelihood, and dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629)."""

from typing import Literal

import torch
from torch import Tensor

from alignlab.batches import LossOutput, Ratio

Reduction = Literal["token", "sequence"]


def nll(token_logps: Tensor, owner: Tensor, num_sequences: int, *, reduction: Reduction) -> LossOutput:
    """Negative log-likelihood of the supervised tokens.

    Args:
        token_logps: Log-probabilities, carry the gradient. Shape ``[N]``.
        owner: Sequence of each token. Shape ``[N]``.
        num_sequences: S.
        reduction: ``token`` weighs every token alike, ``sequence`` every sequence.

    Returns:
        Sum of the token losses with weight N, or sum of the sequences' means with weight S.
    """
    return reduce_tokens(-token_logps, owner, num_sequences, reduction)


def dft(token_logps: Tensor, owner: Tensor, num_sequences: int, *, reduction: Reduction) -> LossOutput:
    """Dynamic fine-tuning: each token's loss weighed by its own probability, without gradient (eq. 9).

    Args and returns as in ``nll``.
    """
    return reduce_tokens(-token_logps.detach().exp() * token_logps, owner, num_sequences, reduction)


def reduce_tokens(token_losses: Tensor, owner: Tensor, num_sequences: int, reduction: Reduction) -> LossOutput:
    """Sum token losses as they are, or as means of their sequences.

    Args:
        token_losses: Shape ``[N]``.
        owner: Sequence of each token. Shape ``[N]``.
        num_sequences: S.
        reduction: ``token`` or ``sequence``.
    """
    count = token_losses.new_tensor(token_losses.numel())
    if reduction == "token":
        return LossOutput(token_losses.sum(), count)
    tokens = torch.bincount(owner, minlength=num_sequences).clamp(min=1)
    return LossOutput((token_losses / tokens[owner]).sum(), count.new_tensor(num_sequences))


def token_metrics(token_logps: Tensor, hits: Tensor) -> dict[str, Ratio]:
    """``nll`` and ``token_accuracy`` of the supervised tokens.

    Args:
        token_logps: Shape ``[N]``.
        hits: Whether each label is the most likely token. Shape ``[N]``.
    """
    count = token_logps.detach().new_tensor(token_logps.numel())
    return {"nll": Ratio(-token_logps.detach().sum(), count), "token_accuracy": Ratio(hits.sum(), count)}
