"""Losses over pairs of a chosen and a rejected completion: DPO (arXiv 2305.18290) and its variants.

Each function takes the P pairs of a micro-batch and returns one loss per pair, of shape ``[P]``, or a ``LossTerm`` if
its mean is not over pairs. A score is the log-ratio of policy and reference unless another divergence is chosen, δ is
the difference of the two scores, and β is their scale: a larger β keeps the policy closer to the reference.

1. ``sigmoid_norm`` and ``ipo`` divide each score by the number of tokens of its completion.
2. ``aot`` and ``aot_unpaired`` sort over the pairs of a micro-batch: their result depends on how a step is split.
3. ``nca_pair``, ``bco_pair``, ``sppo_hard``, ``aot…`` and ``apo…`` use log-ratios; the divergence has no effect.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from alignlab.losses.divergence import extended_exp, reverse_kl
from alignlab.losses.logps import segment_sums
from alignlab.types.loss import LossTerm

SORTED = ("aot", "aot_unpaired")
"""Losses whose values belong to quantiles, not to pairs."""

Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a micro-batch; every field but the last has shape ``[P]``.

    Args:
        chosen: Log-probability of the chosen completion under the policy, with gradient.
        rejected: Log-probability of the rejected completion under the policy, with gradient.
        reference_chosen: Log-probability of the chosen completion under the reference; zeros without a reference.
        reference_rejected: Log-probability of the rejected completion under the reference, likewise.
        chosen_tokens: Supervised tokens of the chosen completion.
        rejected_tokens: Supervised tokens of the rejected completion.
        divergence: Maps log-ratios to scores.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    divergence: Callable[[Tensor], Tensor] = reverse_kl

    @property
    def chosen_ratio(self) -> Tensor:
        """Log-ratio of the chosen. Shape ``[P]``."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """Log-ratio of the rejected. Shape ``[P]``."""
        return self.rejected - self.reference_rejected

    @property
    def chosen_score(self) -> Tensor:
        """Score of the chosen. Shape ``[P]``."""
        return self.divergence(self.chosen_ratio)

    @property
    def rejected_score(self) -> Tensor:
        """Score of the rejected. Shape ``[P]``."""
        return self.divergence(self.rejected_ratio)

    @property
    def delta(self) -> Tensor:
        """Score of the chosen minus that of the rejected. Shape ``[P]``."""
        return self.chosen_score - self.rejected_score

    @property
    def mean_delta(self) -> Tensor:
        """Score per token of the chosen minus that of the rejected. Shape ``[P]``."""
        return self.chosen_score / self.chosen_tokens - self.rejected_score / self.rejected_tokens


def sigmoid(pairs: Pairs, *, beta: float, label_smoothing: Smoothing) -> Tensor:
    """DPO, eq. 7; with label smoothing ε the conservative DPO: -(1-ε) log σ(βδ) - ε log σ(-βδ)."""
    return _logistic(beta * pairs.delta, label_smoothing)


def sigmoid_norm(pairs: Pairs, *, beta: float) -> Tensor:
    """DPO on scores per token (LN-DPO, Tülu 3, arXiv 2411.15124, eq. 6)."""
    return _logistic(beta * pairs.mean_delta, 0.0)


def robust(pairs: Pairs, *, beta: float, label_smoothing: Smoothing) -> Tensor:
    """Unbiased under labels flipped with probability ε (rDPO, arXiv 2403.00409, eq. 12)."""
    logits, flipped = beta * pairs.delta, label_smoothing
    return (flipped * logsigmoid(-logits) - (1 - flipped) * logsigmoid(logits)) / (1 - 2 * flipped)


def ipo(pairs: Pairs, *, beta: float) -> Tensor:
    """Squared distance of δ, on scores per token, from 1/(2β) (IPO, arXiv 2310.12036, eq. 17)."""
    return (pairs.mean_delta - 1 / (2 * beta)).square()


def hinge(pairs: Pairs, *, beta: float) -> Tensor:
    """max(0, 1 - βδ) (SLiC-HF, arXiv 2305.10425, eq. 2, on scaled scores; RSO, arXiv 2309.06657)."""
    return relu(1 - beta * pairs.delta)


def exo_pair(pairs: Pairs, *, beta: float, label_smoothing: Annotated[float, Field(gt=0, lt=0.5)]) -> Tensor:
    """Reverse KL of the policy's preference from the smoothed label (EXO, arXiv 2402.00856, eq. 16)."""
    logits, smooth = beta * pairs.delta, torch.tensor(label_smoothing, dtype=torch.float64)
    kept, flipped = logsigmoid(logits), logsigmoid(-logits)
    return kept.exp() * (kept - (-smooth).log1p().item()) + flipped.exp() * (flipped - smooth.log().item())


def nca_pair(pairs: Pairs, *, beta: float) -> Tensor:
    """Noise-contrastive alignment of each reward (NCA, arXiv 2402.05369, eq. 11 with K = 2)."""
    chosen, rejected = beta * pairs.chosen_ratio, beta * pairs.rejected_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(pairs: Pairs, *, beta: float) -> Tensor:
    """Binary classification of the rewards by their sign (BCO, arXiv 2404.04656, eq. 13, without the shift δ)."""
    return -logsigmoid(beta * pairs.chosen_ratio) - logsigmoid(-beta * pairs.rejected_ratio)


def sppo_hard(pairs: Pairs, *, beta: float) -> Tensor:
    """Squared distance of the log-ratios from ±1/(2β) (SPPO, arXiv 2405.00675, eq. 4.7 with hard labels)."""
    return (pairs.chosen_ratio - 0.5 / beta).square() + (pairs.rejected_ratio + 0.5 / beta).square()


def aot(pairs: Pairs, *, beta: float, label_smoothing: Smoothing) -> Tensor:
    """Margins of policy and reference, sorted and compared by quantile (AOT, arXiv 2406.05882, alg. 1, paired)."""
    policy, reference = pairs.chosen - pairs.rejected, pairs.reference_chosen - pairs.reference_rejected
    return _logistic(beta * (policy.sort().values - reference.sort().values), label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float, label_smoothing: Smoothing) -> Tensor:
    """Log-ratios of chosen and rejected, sorted and compared by quantile (AOT, alg. 1, unpaired)."""
    delta = pairs.chosen_ratio.sort().values - pairs.rejected_ratio.sort().values
    return _logistic(beta * delta, label_smoothing)


def apo_zero(pairs: Pairs, *, beta: float) -> Tensor:
    """Raise the chosen and lower the rejected (APO-zero, arXiv 2408.06266, eq. 7)."""
    return torch.sigmoid(-beta * pairs.chosen_ratio) + torch.sigmoid(beta * pairs.rejected_ratio)


def apo_down(pairs: Pairs, *, beta: float) -> Tensor:
    """Lower the chosen, and the rejected even more (APO-down, arXiv 2408.06266, eq. 8)."""
    delta = pairs.chosen_ratio - pairs.rejected_ratio
    return torch.sigmoid(beta * pairs.chosen_ratio) + torch.sigmoid(-beta * delta)


def discopop(pairs: Pairs, *, beta: float, temperature: Annotated[float, Field(gt=0)]) -> Tensor:
    """Mix of logistic and exponential loss, weighted by the log-ratio (DiscoPOP, arXiv 2406.08414, eq. 5)."""
    logits = beta * pairs.delta
    # The share and the exponential are 0 · ∞ for a wrong order by a large margin, so they are one exponential.
    exponential = extended_exp(logsigmoid(logits / temperature) - logits)
    return (torch.sigmoid(logits / temperature) - 1) * logsigmoid(logits) + exponential


def sft(pairs: Pairs, *, beta: float) -> LossTerm:
    """Negative log-likelihood of the chosen, mean over tokens (RPO, arXiv 2404.19733, eq. 1, without β)."""
    return LossTerm(-pairs.chosen, "chosen_tokens")


def wpo_weights(token_logps: Tensor, log_collisions: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Log-weights of completions by how likely the policy is to sample them (WPO, arXiv 2406.11827, eq. 4 and 5).

    Args:
        token_logps: Log-probabilities under the policy. Shape ``[N]``.
        log_collisions: Log of the sum of squared probabilities of the vocabulary at each token. Shape ``[N]``.
        sequence_ids: Sequence of each token, ascending. Shape ``[N]``.
        num_sequences: S.

    Returns:
        Mean over the tokens of each completion, without gradient. The weight of a pair is the exp of the sum of its
        two. Shape ``[S]``.
    """
    excess = (token_logps - log_collisions).detach()
    tokens = torch.bincount(sequence_ids, minlength=num_sequences).clamp(min=1)
    return segment_sums(excess, sequence_ids, num_sequences) / tokens


def _logistic(logits: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)
