"""Entropy of the policy's predictions: as a bonus, and to select the tokens to learn from (arXiv 2506.01939)."""

import torch
from torch import Tensor

from alignlab.types.loss import LossTerm


def entropy_bonus(entropies: Tensor, *, entropy_coef: float) -> LossTerm:
    """A bonus for the mean entropy of the step's tokens; the normaliser of the policy's loss does not affect it.

    Args:
        entropies: In nats, carry the gradient. Shape ``[N]``.
        entropy_coef: Bonus per nat; a negative one penalises entropy.
    """
    return LossTerm(-entropy_coef * entropies, "supervised_tokens")


def entropy_threshold(entropies: Tensor, top_share: float) -> Tensor:
    """The (1 - ``top_share``) quantile of the entropies, interpolated between tokens.

    Args:
        entropies: Entropies of all tokens of the step, gathered from all ranks by the caller and computed with the
            weights that sampled: the selection does not depend on how a step is split. Shape ``[M]``.
        top_share: Share of the tokens to select, in 0…1.

    Returns:
        Shape ``[]``.
    """
    # torch.quantile accepts at most 2**24 values.
    ascending = entropies.detach().sort().values
    position = (1 - top_share) * (len(ascending) - 1)
    below = int(position)
    above = min(below + 1, len(ascending) - 1)
    return torch.lerp(ascending[below], ascending[above], position - below)


def top_entropy_mask(entropies: Tensor, threshold: Tensor) -> Tensor:
    """Mask of the tokens with at least the threshold's entropy: a factor of the policy's losses, not of the normaliser.

    Args:
        entropies: Entropy at each token, in nats. Shape ``[N]``.
        threshold: From ``entropy_threshold``. Shape ``[]``.

    Returns:
        Shape ``[N]``, bool.
    """
    return entropies.detach() >= threshold
