"""Entropy of the policy's predictions: as a bonus, and as the choice of tokens to learn from (arXiv 2506.01939)."""

import torch
from torch import Tensor

from alignlab.types.loss import LossTerm


def entropy_bonus(entropies: Tensor, *, entropy_coef: float) -> LossTerm:
    """A bonus for the mean entropy of the step's tokens, whatever the normaliser of the policy's loss.

    Args:
        entropies: In nats, carry the gradient. Shape ``[N]``.
        entropy_coef: Loss per nat; negative punishes entropy.
    """
    return LossTerm(-entropy_coef * entropies, "supervised_tokens")


def entropy_threshold(entropies: Tensor, top_share: float) -> Tensor:
    """The entropy from which on a token is among the highest, interpolated between tokens.

    Args:
        entropies: Of all tokens that are compared: the whole step over all ranks, gathered by the caller, as the
            policy had them when it sampled, so that the choice does not depend on how a step is cut. Shape ``[M]``.
        top_share: Share of the tokens to find, in 0…1.

    Returns:
        Shape ``[]``.
    """
    # torch.quantile refuses more than 2**24 values.
    ascending = entropies.detach().sort().values
    place = (1 - top_share) * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return torch.lerp(ascending[below], ascending[above], place - below)


def top_entropy_mask(entropies: Tensor, threshold: Tensor) -> Tensor:
    """Which tokens decide something; a factor of the policy's losses that leaves their normaliser as it is.

    Args:
        entropies: Shape ``[N]``.
        threshold: From ``entropy_threshold``. Shape ``[]``.

    Returns:
        Shape ``[N]``, bool.
    """
    return entropies.detach() >= threshold
