"""Comparison of a server's log-probs with those of the training forward.

They differ because of other kernels, another dtype, or by mistake other weights; importance ratios then do not start at
1. The KL is estimated by k3 (Schulman, "Approximating KL divergence", 2020).
"""

import logging
from dataclasses import dataclass

from torch import Tensor

log = logging.getLogger(__name__)


class ParityError(RuntimeError):
    """The server does not sample from the policy in training."""


@dataclass(frozen=True)
class Parity:
    """Difference of the log-probs of server and trainer for the same sampled tokens.

    Args:
        mean_difference: Mean absolute difference, in nats per token.
        largest_ratio: Largest ratio of the two probabilities of a token, at least 1.
        kl: Estimate of KL(server || trainer), in nats per token, non-negative.
    """

    mean_difference: float
    largest_ratio: float
    kl: float


def measure(sampled: Tensor, trained: Tensor) -> Parity:
    """Compare log-probs.

    Args:
        sampled: Log-probs of sampled tokens from the server. Shape ``[N]``.
        trained: Log-probs of the same tokens from the training forward, at the sampling temperature. Shape ``[N]``.

    Raises:
        ValueError: There are no tokens, or the shapes differ.
    """
    if sampled.shape != trained.shape or not sampled.numel():
        raise ValueError(f"log-probs of {list(sampled.shape)} sampled and {list(trained.shape)} scored tokens")
    log_ratio = trained.detach().double() - sampled.detach().double()
    k3 = log_ratio.exp() - 1 - log_ratio
    distance = log_ratio.abs()
    return Parity(distance.mean().item(), distance.max().exp().item(), k3.mean().item())


def check_parity(parity: Parity, *, warn_at: float, stop_at: float) -> None:
    """Warn or raise if the mean difference of log-probs is too large.

    Args:
        parity: From ``measure``.
        warn_at: Mean difference from which to warn, in nats per token; 0.02 is about 2 % of a probability.
        stop_at: Mean difference from which to raise, in nats per token.

    Raises:
        ParityError: The mean difference exceeds ``stop_at``, or is NaN.
    """
    message = (
        f"the server's log-probs differ from the trainer's by {parity.mean_difference:.3g} nats per token on "
        f"average (largest ratio {parity.largest_ratio:.3g}, KL {parity.kl:.3g})"
    )
    if not parity.mean_difference <= stop_at:
        raise ParityError(
            f"{message}, more than {stop_at:g}: it has other weights, another dtype or another temperature. "
            "Type rollout.dtype=float32 to rule out the dtype, or rollout=hf"
        )
    if parity.mean_difference > warn_at:
        log.warning("%s, more than %g", message, warn_at)
