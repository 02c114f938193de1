"""Rewards and values of tokens: generalised advantage estimation (arXiv 1506.02438) and the critic's loss.

The tokens of all completions are concatenated. The value after the last token of a completion is 0, also if the
completion was truncated.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from alignlab.types.loss import Ratio


class Estimate(NamedTuple):
    """Result of GAE for each token.

    Args:
        advantages: A. Shape ``[N]``.
        returns: A + V, the targets of the critic. Shape ``[N]``.
    """

    advantages: Tensor
    returns: Tensor


class ValueLoss(NamedTuple):
    """Losses of a critic.

    Args:
        losses: Carry the gradient. Shape ``[N]``.
        clipped: Where clipping removed the gradient. Shape ``[N]``, bool.
    """

    losses: Tensor
    clipped: Tensor


def token_rewards(scores: Tensor, token_kl: Tensor, sequence_ids: Tensor, *, kl_coef: float) -> Tensor:
    """Rewards of tokens: the score at the last token of a completion, minus a penalty for the KL of each token.

    Args:
        scores: Score of each completion. Shape ``[S]``.
        token_kl: Estimates of the divergence from the reference; ``k1`` leads to the right gradient. Shape ``[N]``.
        sequence_ids: Completion of each token, ascending. Shape ``[N]``.
        kl_coef: Reward per nat.

    Returns:
        The score of a completion without tokens is lost. Shape ``[N]``.
    """
    last = torch.ones_like(sequence_ids, dtype=torch.bool)
    last[:-1] = sequence_ids[1:] != sequence_ids[:-1]
    return torch.where(last, scores[sequence_ids], 0.0) - kl_coef * token_kl


def gae(rewards: Tensor, values: Tensor, sequence_ids: Tensor, *, gamma: float, lam: float) -> Estimate:
    """Generalised advantage estimation: A_t = Σ (γλ)^l δ_(t+l), δ_t = r_t + γ V_(t+1) - V_t (eq. 16).

    Args:
        rewards: Reward of each token. Shape ``[N]``.
        values: The critic's value before each token, without gradient. Shape ``[N]``.
        sequence_ids: Completion of each token, ascending. Shape ``[N]``.
        gamma: Discount per token, in 0…1.
        lam: λ in 0…1: 0 relies on the critic, 1 on the rewards.
    """
    errors = rewards + gamma * _ahead(values, sequence_ids, 1) - values
    advantages = discounted_sums(errors, sequence_ids, gamma * lam)
    return Estimate(advantages, advantages + values)


def discounted_sums(values: Tensor, sequence_ids: Tensor, discount: float) -> Tensor:
    """Σ discount^l x_(t+l) over the rest of each completion, in log2(length) passes over all tokens.

    Args:
        values: x. Shape ``[N]``.
        sequence_ids: Completion of each token, ascending. Shape ``[N]``.
        discount: In 0…1.

    Returns:
        Shape ``[N]``.
    """
    longest = int(torch.bincount(sequence_ids).max()) if len(sequence_ids) else 0
    reach = 1
    # Sums over `reach` tokens become sums over twice as many: S_2n(t) = S_n(t) + discount^n S_n(t + n).
    while reach < longest:
        values = values + discount**reach * _ahead(values, sequence_ids, reach)
        reach *= 2
    return values


def whiten(values: Tensor, kept: Tensor | None = None, *, shift: bool = True) -> Tensor:
    """Scale values to variance 1 (n - 1) and, with ``shift``, mean 0.

    Args:
        values: Values of the whole step or rollout, gathered from all ranks by the caller. Shape ``[M]``.
        kept: The values that mean and variance are computed from; ``None`` for all. Shape ``[M]``, bool.
        shift: False keeps the mean.

    Returns:
        All values scaled, including those not kept. Shape ``[M]``.
    """
    counted = values if kept is None else values[kept]
    mean = counted.mean()
    variance = (counted - mean).square().sum() / max(counted.numel() - 1, 1)
    whitened = (values - mean) * (variance + 1e-8).rsqrt()
    return whitened if shift else whitened + mean


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_value: float | None) -> ValueLoss:
    """Half the squared error of the value or of the value clipped around the old one, whichever is larger.

    The clipping is that of PPO's first implementation (Huang et al. 2022, "The 37 implementation details", no. 9).

    Args:
        values: Values of the critic in training, with gradient. Shape ``[N]``.
        old_values: Values when the rollout was scored. Shape ``[N]``.
        returns: Targets. Shape ``[N]``.
        clip_value: Largest distance from the old value; ``None`` for no clipping.
    """
    losses = (values - returns).square() / 2
    if clip_value is None:
        return ValueLoss(losses, torch.zeros_like(losses, dtype=torch.bool))
    near = values.clamp(old_values - clip_value, old_values + clip_value)
    clipped = (near - returns).square() / 2
    return ValueLoss(torch.maximum(losses, clipped), (clipped > losses).detach())


def explained_variance(values: Tensor, returns: Tensor) -> Ratio:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one, negative for a worse one.

    Args:
        values: Values of the whole rollout, gathered from all ranks by the caller. Shape ``[M]``.
        returns: Their targets. Shape ``[M]``.
    """
    total, errors = ((x - x.mean()).square().sum().detach() for x in (returns, returns - values))
    return Ratio(total - errors, total)


def value_metrics(loss: ValueLoss) -> dict[str, Ratio]:
    """``value_loss`` and ``value_clip_fraction``, means over tokens.

    Args:
        loss: From ``value_loss``.
    """
    count = loss.losses.detach().new_tensor(loss.losses.numel())
    values = {"value_loss": loss.losses.detach(), "value_clip_fraction": loss.clipped}
    return {name: Ratio(value.sum(), count) for name, value in values.items()}


def _ahead(values: Tensor, sequence_ids: Tensor, distance: int) -> Tensor:
    """The value ``distance`` tokens later in the same completion, 0 past its end. Shape ``[N]``."""
    later = torch.zeros_like(values)
    later[:-distance] = values[distance:] * (sequence_ids[distance:] == sequence_ids[:-distance])
    return later
