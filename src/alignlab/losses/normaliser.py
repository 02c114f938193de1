"""What a token of a completion weighs in the mean that is the loss of an optimizer step.

    sequence  mean over completions of the means over their tokens              GRPO, GSPO, SAPO, GMPO, RLOO
    token     mean over all tokens of the step                                  BNPO, DAPO, CISPO, VESPO, PPO
    constant  sum over tokens by the longest length, mean over completions      Dr. GRPO (arXiv 2503.20783)
    sum       sum over tokens, mean over completions                            LUSPO (arXiv 2602.05261)

A completion whose mask is 0 counts as if it were not in the step, in neither the sum nor what it is divided by, with
any of them. Factors of single tokens multiply the losses and leave the weights as they are.

1. Means are over the whole step, not over what one device holds at a time; so BNPO and DAPO weigh alike.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

import torch
from torch import Tensor

from alignlab.batches import LossOutput, Ratio
from alignlab.losses.logps import token_counts

Normaliser = Literal["sequence", "token", "constant", "sum"]
Count = TypeVar("Count", int, Tensor)


def token_weights(normaliser: Normaliser, owner: Tensor, num_sequences: int, max_completion_tokens: int) -> Tensor:
    """What each token's loss is multiplied by before it is summed and divided by ``total_weight``.

    Args:
        normaliser: See above.
        owner: Completion of each token. Shape ``[N]``.
        num_sequences: S.
        max_completion_tokens: The longest length that sampling allows.

    Returns:
        Shape ``[N]``, float64.
    """
    ones = torch.ones_like(owner, dtype=torch.float64)
    if normaliser == "sequence":
        return ones / token_counts(owner, num_sequences, ones.dtype)[owner]
    return ones / max_completion_tokens if normaliser == "constant" else ones


def total_weight(normaliser: Normaliser, *, tokens: Count, sequences: Count) -> Count:
    """What the weighted sum is divided by, from the counts of the whole optimizer step over all ranks.

    Args:
        normaliser: See above.
        tokens: Tokens of the completions that are not masked.
        sequences: Completions that are not masked, those without a token among them.
    """
    return tokens if normaliser == "token" else sequences


def weigh(
    losses: Tensor,
    owner: Tensor,
    mask: Tensor,
    *,
    normaliser: Normaliser,
    max_completion_tokens: int,
    metrics: Mapping[str, Ratio],
) -> LossOutput:
    """Sum the losses of the tokens that are not masked, each with its weight.

    Args:
        losses: Of the policy, with all that was added to and multiplied into them. Shape ``[N]``.
        owner: Completion of each token. Shape ``[N]``.
        mask: 0 for completions to leave out, else 1. Shape ``[S]``.
        normaliser: See above.
        max_completion_tokens: The longest length that sampling allows.
        metrics: Passed on.

    Returns:
        A sum to be divided by the ``total_weight`` of the step, of which ``weight`` is this micro-batch's share.
    """
    weights = token_weights(normaliser, owner, len(mask), max_completion_tokens).to(losses.dtype)
    kept = mask[owner] > 0
    # Not a product: 0 times what is not finite is not 0.
    total = torch.where(kept, weights * losses, 0.0).sum()
    counts = total_weight(normaliser, tokens=kept.sum(), sequences=mask.sum())
    return LossOutput(total, counts.to(losses.dtype), metrics)
