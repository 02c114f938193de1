"""Weights of tokens in the mean that is the loss of an optimizer step.

    sequence  mean over completions of the means over their tokens              GRPO, GSPO, SAPO, GMPO, RLOO
    token     mean over all tokens of the step                                  SFT, BNPO, DAPO, CISPO, VESPO, PPO
    constant  sum over tokens / the longest length, mean over completions       Dr. GRPO (arXiv 2503.20783)
    sum       sum over tokens, mean over completions                            LUSPO (arXiv 2602.05261)

Factors of single tokens (masks, importance weights) multiply the losses and leave these weights unchanged.

1. Means are over the whole step, not over a micro-batch of one device; BNPO and DAPO are therefore the same.
"""

from typing import Literal

from torch import Tensor

from alignlab.losses.logps import token_counts
from alignlab.types.loss import LossTerm

Normaliser = Literal["sequence", "token", "constant", "sum"]

UNITS = {"sequence": "sequences", "token": "supervised_tokens", "constant": "sequences", "sum": "sequences"}


def normalise(
    losses: Tensor, sequence_ids: Tensor, num_sequences: int, normaliser: Normaliser, max_completion_tokens: int = 1
) -> LossTerm:
    """Weight the losses of tokens, and give the unit that their sum is divided by.

    Args:
        losses: Loss of each token, with all terms and factors. Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        num_sequences: S, including completions without tokens.
        normaliser: See above.
        max_completion_tokens: The longest length that sampling allows, for ``constant``.
    """
    if normaliser == "sequence":
        losses = losses / token_counts(sequence_ids, num_sequences, losses.dtype)[sequence_ids]
    if normaliser == "constant":
        losses = losses / max_completion_tokens
    return LossTerm(losses, UNITS[normaliser])
