"""Scores of labels from logits as one operation, whose gradient takes the memory of the log-probabilities.

With logits z of a row, divided by the temperature, p = softmax(z) and label y, for token j:

    log-probability   log p_y                 gradient   [j = y] - p_j
    entropy           H = -sum p_j log p_j    gradient   -p_j (log p_j + H)
    log-collision     C = log sum p_j^2       gradient   2 (p_j^2 / exp(C) - p_j)

Composed of PyTorch's operations, these would store several tensors of the size of the logits and go over them again
and again.
"""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Wanted = Literal["entropies", "log_collisions"]


def label_scores(
    logits: Tensor, labels: Tensor, temperature: float, want: Collection[Wanted]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score labels.

    Args:
        logits: Shape ``[N, V]``, of any floating dtype.
        labels: Token ids. Shape ``[N]``.
        temperature: Divides the logits.
        want: Further quantities to compute.

    Returns:
        Log-probabilities ``[N]``, whether a label is the most likely token ``[N]`` (ties count), entropies in nats and
        log-collisions, each ``[N]``, or ``[0]`` if not wanted. Computed in float32 at least. The gradient can be
        computed once.
    """
    return _LabelScores.apply(logits, labels, temperature, frozenset(want))


class _LabelScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, temperature, want):
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.temperature, ctx.is_used = logits.dtype, temperature, False
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        logits = logits if temperature == 1.0 else logits.to(dtype) / temperature
        log_probs = logits.log_softmax(-1, dtype=dtype)
        logps = log_probs.gather(-1, labels[:, None])[:, 0]
        hits = logps == log_probs.amax(-1)
        entropies = collisions = logps.new_empty(0)
        if "entropies" in want:
            entropies = log_probs.exp().mul_(log_probs).sum(-1).neg_()
        if "log_collisions" in want:
            collisions = (2 * log_probs).logsumexp(-1)
        ctx.save_for_backward(log_probs, labels, entropies, collisions)
        ctx.mark_non_differentiable(hits)
        return logps, hits, entropies, collisions

    @staticmethod
    @once_differentiable
    def backward(ctx, of_logps, _, of_entropies, of_collisions):
        if ctx.is_used:
            raise RuntimeError("the gradient of label scores can be computed once: it overwrites what it needs")
        ctx.is_used = True
        log_probs, labels, entropies, collisions = ctx.saved_tensors
        of_logps = entropies.new_zeros(len(labels)) if of_logps is None else of_logps
        # The gradient is p_j times a factor, which is the same for all tokens if only log-probabilities are wanted.
        factor = -of_logps[:, None]
        if of_entropies is not None and len(entropies):
            factor = factor - of_entropies[:, None] * (log_probs + entropies[:, None])
        probs = log_probs.exp_()
        if of_collisions is not None and len(collisions):
            factor = factor + 2 * of_collisions[:, None] * (probs * (-collisions).exp()[:, None] - 1)
        gradient = probs.mul_(factor)
        gradient.scatter_add_(-1, labels[:, None], of_logps[:, None])
        if ctx.temperature != 1.0:
            gradient.div_(ctx.temperature)
        return gradient.to(ctx.dtype), None, None, None
