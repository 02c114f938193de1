"""Whether a server's log-probabilities are those of the training forward.

They are computed by other kernels, in another number format and perhaps from other weights; the ratio of policies then
starts away from 1. The measures follow the k3 estimator of Schulman, "Approximating KL divergence" (2020).
"""

import logging
from dataclasses import dataclass

from torch import Tensor

log = logging.getLogger(__name__)


class ParityError(RuntimeError):
    """The server samples from another policy than the one in training."""


@dataclass(frozen=True)
class Parity:
    """How far two sets of log-probabilities of the same sampled tokens are apart.

    Args:
        mean_difference: Mean absolute difference, nats per token.
        largest_ratio: Largest ratio of the two probabilities of a token, at least 1.
        kl: Estimate of KL(server, trainer), nats per token, not negative.
    """

    mean_difference: float
    largest_ratio: float
    kl: float


def measure(sampled: Tensor, trained: Tensor) -> Parity:
    """Compare log-probabilities.

    Args:
        sampled: As given by the server with the tokens. Shape ``[N]``.
        trained: Of the same tokens from the training forward, at the temperature of the sampling. Shape ``[N]``.

    Raises:
        ValueError: There are no tokens, or not equally many.
    """
    if sampled.shape != trained.shape or not sampled.numel():
        raise ValueError(f"log-probabilities of {list(sampled.shape)} sampled and {list(trained.shape)} scored tokens")
    log_ratio = trained.detach().double() - sampled.detach().double()
    k3 = log_ratio.exp() - 1 - log_ratio
    distance = log_ratio.abs()
    return Parity(distance.mean().item(), distance.max().exp().item(), k3.mean().item())


def judge(parity: Parity, *, warn_at: float, stop_at: float) -> None:
    """Warn of, or stop at, a mean difference.

    Args:
        parity: From ``measure``.
        warn_at: Nats per token; 0.02 is about 2 % of a probability.
        stop_at: Nats per token.

    Raises:
        ParityError: The mean difference exceeds ``stop_at``, or is no number.
    """
    told = (
        f"the server's log-probabilities differ from the trainer's by {parity.mean_difference:.3g} nats per token in "
        f"the mean (largest ratio {parity.largest_ratio:.3g}, KL {parity.kl:.3g})"
    )
    if not parity.mean_difference <= stop_at:
        raise ParityError(
            f"{told}, more than {stop_at:g}: it has other weights, another number format or another temperature. "
            "Type rollout.dtype=float32 to rule out the format, or rollout=hf"
        )
    if parity.mean_difference > warn_at:
        log.warning("%s, more than %g", told, warn_at)
