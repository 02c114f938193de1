"""Ratios of probabilities between the policy and whoever sampled the completions, and what is done about large ones.

Three policies meet here: the *policy* that is trained, the *old* one whose weights sampled, and the *sampled*
log-probabilities that the sampling engine itself reported, which differ from the old ones by its numerics.
"""

from typing import Literal

import torch
from torch import Tensor

from alignlab.losses.logps import sequence_sums, token_counts

RatioLevel = Literal["token", "sequence", "sequence_sum"]
"""Ratio of each token (PPO, arXiv 1707.06347), their geometric mean over a completion (GSPO, arXiv 2507.18071, eq. 7),
or their product, the ratio of whole completions (RLOO, arXiv 2402.14740)."""

MAX_LOG_RATIO = 20.0
"""Beyond it exp would soon be infinite and its gradient not a number; such a ratio passes no gradient."""


def log_ratios(
    token_logps: Tensor, old_token_logps: Tensor | None, sequence_ids: Tensor, num_sequences: int, level: RatioLevel
) -> Tensor:
    """Log of the importance ratio that belongs to each token.

    Args:
        token_logps: Under the policy, carries the gradient. Shape ``[N]``.
        old_token_logps: Under the policy that sampled. ``None``: it is the same, the ratio is 1, with its gradient.
        sequence_ids: Completion of each token. Shape ``[N]``.
        num_sequences: S.
        level: What the ratio is taken of.

    Returns:
        At most ``MAX_LOG_RATIO``; equal within a completion unless ``level`` is ``token``. Shape ``[N]``.
    """
    ratios = token_logps - (token_logps.detach() if old_token_logps is None else old_token_logps)
    if level != "token":
        ratios = sequence_sums(ratios, sequence_ids, num_sequences)[sequence_ids]
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
    """Weights that correct for an engine whose probabilities are not quite the trainer's (Ionides 2008).

    Args:
        old_token_logps: What the trainer says of the tokens with the weights that sampled. Shape ``[N]``.
        sampled_token_logps: What the engine said; NaN where it said nothing, which counts as agreement. Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        num_sequences: S.
        cap: Largest weight, above 1.
        level: Weigh tokens by themselves or completions as wholes.
        beyond: A larger weight becomes the cap, or 0.

    Returns:
        Factors of the policy's losses, not of its KL term, without gradient. Shape ``[N]``.
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
    """Which tokens to learn from: not bad ones of completions that the policy has left behind (arXiv 2512.02556).

    Args:
        token_logps: Under the policy. Shape ``[N]``.
        sampled_token_logps: As sampled, by the engine where there is one; NaN counts as agreement. Shape ``[N]``.
        advantages: Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        num_sequences: S.
        threshold: Mean over a completion's tokens of log(sampled / policy), from which on it is left behind, in nats.

    Returns:
        False for tokens of negative advantage in completions beyond the threshold; a factor of the policy's losses
        that leaves their normaliser as it is. Shape ``[N]``, bool.
    """
    drift = torch.where(sampled_token_logps.isnan(), 0.0, sampled_token_logps - token_logps).detach()
    drift = sequence_sums(drift, sequence_ids, num_sequences) / token_counts(sequence_ids, num_sequences, drift.dtype)
    return (advantages >= 0) | (drift[sequence_ids] <= threshold)
