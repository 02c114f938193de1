"""Importance ratios between the policy and the policy that sampled the completions, and corrections for large ones.

Log-probabilities come from three sources: the *policy* in training; the *old* policy, computed by the trainer with the
weights that sampled; and *sampled*, reported by the sampling engine with the same weights but its own numerics.
"""

from typing import Literal

import torch
from torch import Tensor

from alignlab.losses.logps import segment_sums, token_counts

RatioLevel = Literal["token", "sequence", "sequence_sum"]
"""Ratio of each token (PPO, arXiv 1707.06347), geometric mean of the ratios of a completion (GSPO, arXiv 2507.18071,
eq. 7), or their product, the ratio of the whole completion (RLOO, arXiv 2402.14740)."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this value, so that exp and its gradient stay finite; a clamped ratio has no gradient."""


def log_ratios(
    token_logps: Tensor, old_token_logps: Tensor | None, sequence_ids: Tensor, num_sequences: int, level: RatioLevel
) -> Tensor:
    """Log of the importance ratio of each token.

    Args:
        token_logps: Log-probabilities under the policy, carry the gradient. Shape ``[N]``.
        old_token_logps: Log-probabilities under the policy that sampled. ``None`` if that is the policy itself: the
            ratio is then 1 but still carries the gradient. Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        num_sequences: S.
        level: Whether the ratio is that of a token or of a completion, see ``RatioLevel``.

    Returns:
        At most ``MAX_LOG_RATIO``; equal within a completion unless ``level`` is ``token``. Shape ``[N]``.
    """
    ratios = token_logps - (token_logps.detach() if old_token_logps is None else old_token_logps)
    if level != "token":
        ratios = segment_sums(ratios, sequence_ids, num_sequences)[sequence_ids]
    if level == "sequence":
        ratios = ratios / token_counts(sequence_ids, num_sequences, ratios.dtype)[sequence_ids]
    return ratios.clamp(max=MAX_LOG_RATIO)


def truncated_importance(
    old_token_logps: Tensor,
    sampled_token_logps: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    cap: float,
    level: RatioLevel,
    beyond: Literal["truncate", "mask"],
) -> Tensor:
    """Importance weights for an engine whose probabilities differ slightly from the trainer's (Ionides 2008).

    Args:
        old_token_logps: From the trainer, with the weights that sampled. Shape ``[N]``.
        sampled_token_logps: From the engine; NaN where it reported none, which gives a ratio of 1. Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        num_sequences: S.
        cap: Largest weight, above 1.
        level: Whether to weight single tokens or whole completions.
        beyond: ``truncate`` sets a larger weight to the cap, ``mask`` to 0.

    Returns:
        Factors of the policy's losses (not of the KL term), without gradient. Shape ``[N]``.
    """
    sampled = torch.where(sampled_token_logps.isnan(), old_token_logps, sampled_token_logps).detach()
    weights = log_ratios(old_token_logps.detach(), sampled, sequence_ids, num_sequences, level).exp()
    return weights.clamp(max=cap) if beyond == "truncate" else weights * (weights <= cap)


def off_policy_mask(
    token_logps: Tensor,
    sampled_token_logps: Tensor,
    advantages: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    threshold: float,
) -> Tensor:
    """Mask out tokens of negative advantage in completions that have become too unlikely (arXiv 2512.02556).

    Args:
        token_logps: Log-probabilities under the policy. Shape ``[N]``.
        sampled_token_logps: Log-probabilities when sampled, from the engine if there is one; NaN counts as equal to
            the policy's. Shape ``[N]``.
        advantages: Advantage of each token. Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        num_sequences: S.
        threshold: Largest mean over a completion's tokens of log(sampled / policy), in nats.

    Returns:
        False for tokens of negative advantage in completions beyond the threshold; a factor of the policy's losses
        that leaves their normaliser as it is. Shape ``[N]``, bool.
    """
    drift = torch.where(sampled_token_logps.isnan(), 0.0, sampled_token_logps - token_logps).detach()
    drift = segment_sums(drift, sequence_ids, num_sequences) / token_counts(sequence_ids, num_sequences, drift.dtype)
    return (advantages >= 0) | (drift[sequence_ids] <= threshold)
