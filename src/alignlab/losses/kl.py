"""KL(policy ‖ reference): estimators, as a term of the loss, and as a penalty in the reward.

With d = log policy - log reference at a token that the policy sampled (Schulman 2020, "Approximating KL divergence"):

    k1 = d                 unbiased, may be negative
    k2 = d² / 2            biased, small where the two are close
    k3 = e^(-d) - 1 + d    unbiased, never negative

A good estimator of the value need not have the right gradient (arXiv 2510.01555). As a term of the loss and
differentiated directly (``plain``), k1 has a zero mean gradient, k2 the right one, and k3, used in the GRPO paper, that
of the other direction, KL(reference ‖ policy). The right gradient, E[d ∇ log policy], requires differentiating the
probabilities of the expectation: k1 and k3 are multiplied by the ratio policy / sampler and differentiated through it,
k2 is multiplied by the ratio's value. ``on_policy`` takes the policy itself as the sampler, ``importance`` the policy
that sampled.

In the reward, k1 summed over a completion has the right gradient; k2 and k3 do not.

1. In the loss, each token is charged for its own divergence only. Its effect on the divergence of later tokens is taken
   into account by the penalty in the reward alone.
2. The ratio of a token is used in place of the ratio of the whole prefix.
"""

from typing import Literal

import torch
from torch import Tensor

from alignlab.losses.importance import MAX_LOG_RATIO
from alignlab.losses.logps import segment_sums

KLEstimator = Literal["k1", "k2", "k3"]
KLGradient = Literal["plain", "on_policy", "importance"]

ESTIMATORS = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.expm1((-d).clamp(max=MAX_LOG_RATIO)) + d,
}
MAX_RELATIVE_ERROR = 0.2  # bound of the adaptive coefficient's error


def kl_values(token_logps: Tensor, reference_token_logps: Tensor, estimator: KLEstimator) -> Tensor:
    """An estimate of the divergence at each token, in nats; its mean over sampled tokens is the KL.

    Args:
        token_logps: Log-probabilities under the policy, carry the gradient. Shape ``[N]``.
        reference_token_logps: Log-probabilities under the reference. Shape ``[N]``.
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
        token_logps: Log-probabilities under the policy, carry the gradient. Shape ``[N]``.
        reference_token_logps: Log-probabilities under the reference. Shape ``[N]``.
        old_token_logps: Log-probabilities under the policy that sampled; ``None`` if that is the policy itself. Shape
            ``[N]``.
        estimator: Estimator of the value.
        gradient: ``plain`` differentiates the estimate; ``on_policy`` has the right gradient if the policy itself
            sampled, ``importance`` also if an older one did, and weights the value by the ratio (arXiv 2512.02556).

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
    """Subtract the divergence of a whole completion from its reward; ``value.token_rewards`` does it token by token.

    Args:
        rewards: NaN where it is missing. Shape ``[S]``.
        token_kl: Estimates at each token, without gradient; ``k1`` leads to the right gradient. Shape ``[N]``.
        sequence_ids: Completion of each token. Shape ``[N]``.
        kl_coef: Reward per nat.

    Returns:
        Shape ``[S]``.
    """
    return rewards - kl_coef * segment_sums(token_kl, sequence_ids, len(rewards))


def next_kl_coef(kl_coef: float, kl: float, *, target: float, gain: float) -> float:
    """The coefficient for the next rollout, adapted to bring the divergence to a target (arXiv 1909.08593).

    The coefficient is the only state of this controller.

    Args:
        kl_coef: The current coefficient.
        kl: Divergence measured over the whole last rollout, all ranks, in the unit of ``target``.
        target: Desired divergence in nats, above 0.
        gain: Share of the relative error that is corrected per rollout; 0.1 in the paper.
    """
    error = min(max(kl / target - 1, -MAX_RELATIVE_ERROR), MAX_RELATIVE_ERROR)
    return kl_coef * (1 + gain * error)
