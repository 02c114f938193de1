"""Divergence of the policy from its reference, KL(policy ‖ reference): estimated, in the loss, and in the reward.

With d = log policy - log reference at a token that the policy sampled (Schulman 2020, "Approximating KL divergence"):

    k1 = d                 unbiased, may be negative
    k2 = d² / 2            biased, small where the two are close
    k3 = e^(-d) - 1 + d    unbiased, never negative

A good estimate of the value is not yet one of the gradient (arXiv 2510.01555). As a term of the loss, differentiated
as it stands (``plain``), k1 pushes nowhere on average, k2 has the right gradient, and k3, as in the GRPO paper, that
of the other direction, KL(reference ‖ policy). The right one, E[d ∇ log policy], comes from the expectation's own
probabilities: k1 and k3 times the ratio policy / sampler, differentiated through the ratio; k2 times its value.
``on_policy`` takes the policy itself for the sampler, ``importance`` the policy that did sample.

In the reward, k1 summed over a completion has the right gradient; k2 and k3 there do not.

1. In the loss each token answers for itself only; what it does to the divergence of later tokens is seen by the
   reward alone.
2. The ratio of a token stands for that of the whole prefix.
"""

from typing import Literal

import torch
from torch import Tensor

from alignlab.losses.importance import MAX_LOG_RATIO
from alignlab.losses.logps import sequence_sums

KLEstimator = Literal["k1", "k2", "k3"]
KLGradient = Literal["plain", "on_policy", "importance"]

ESTIMATORS = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.expm1((-d).clamp(max=MAX_LOG_RATIO)) + d,
}
MAX_RELATIVE_ERROR = 0.2  # of the adaptive coefficient


def kl_values(token_logps: Tensor, reference_token_logps: Tensor, estimator: KLEstimator) -> Tensor:
    """An estimate of the divergence at each token, in nats; its mean over sampled tokens is the KL.

    Args:
        token_logps: Under the policy; the gradient is that of the formula. Shape ``[N]``.
        reference_token_logps: Under the reference. Shape ``[N]``.
        estimator: ``k1``, ``k2`` or ``k3``.

    Returns:
        Shape ``[N]``.
    """
    return ESTIMATORS[estimator](token_logps - reference_token_logps)


def kl_losses(
    token_logps: Tensor,
    reference_token_logps: Tensor,
    old_token_logps: Tensor | None,
    *,
    estimator: KLEstimator,
    gradient: KLGradient,
) -> Tensor:
    """The divergence at each token as a term of the loss, to be multiplied by ``kl_coef``.

    Args:
        token_logps: Under the policy, carries the gradient. Shape ``[N]``.
        reference_token_logps: Under the reference. Shape ``[N]``.
        old_token_logps: Under the policy that sampled; ``None`` where that is the policy itself. Shape ``[N]``.
        estimator: What the value is estimated with.
        gradient: ``plain`` differentiates the estimate; ``on_policy`` has the right gradient where the policy sampled,
            ``importance`` also where an older one did, and weighs the value by the ratio (arXiv 2512.02556).

    Returns:
        Shape ``[N]``.
    """
    values = kl_values(token_logps, reference_token_logps, estimator)
    if gradient == "plain":
        return values
    sampler = token_logps.detach() if gradient == "on_policy" or old_token_logps is None else old_token_logps
    ratios = (token_logps - sampler).clamp(max=MAX_LOG_RATIO).exp()
    return (ratios.detach() if estimator == "k2" else ratios) * values


def penalise_rewards(rewards: Tensor, token_kl: Tensor, sequence_ids: Tensor, *, kl_coef: float) -> Tensor:
    """Take the divergence of a whole completion off its reward; ``value.token_rewards`` does so token by token.

    Args:
        rewards: NaN where there is none. Shape ``[S]``.
        token_kl: Estimates at each token, ``k1`` for the right gradient, without one of their own. Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        kl_coef: Reward per nat.

    Returns:
        Shape ``[S]``.
    """
    return rewards - kl_coef * sequence_sums(token_kl, sequence_ids, len(rewards))


def next_kl_coef(kl_coef: float, kl: float, *, target: float, gain: float) -> float:
    """The coefficient for the next rollout, so that the divergence nears a target (arXiv 1909.08593).

    The coefficient is the only state of this controller.

    Args:
        kl_coef: The coefficient so far.
        kl: Divergence measured over the whole last rollout, all ranks, in the unit of ``target``.
        target: Divergence aimed at, in nats; above 0.
        gain: Share of the relative error that is corrected at once; 0.1 in the paper.
    """
    error = min(max(kl / target - 1, -MAX_RELATIVE_ERROR), MAX_RELATIVE_ERROR)
    return kl_coef * (1 + gain * error)
