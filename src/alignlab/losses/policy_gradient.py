"""Losses on completions that the policy sampled: PPO (arXiv 1707.06347), GRPO (arXiv 2402.03300) and variants.

A loss gives one value per token; ``normaliser`` gives the weights of tokens in the mean. GRPO, BNPO, DAPO and Dr. GRPO
differ only in these weights; GSPO, LUSPO and RLOO also use the ratio of a completion instead of that of a token.

1. The bounds of CISPO are relative to 1, like those of the other losses; ``clip_low: null`` sets no lower bound, as in
   the paper's runs.
2. The ratio of VESPO and GMPO is relative to the old policy, not to the probabilities that the engine reported.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from alignlab.losses.importance import RatioLevel, log_ratios
from alignlab.losses.kl import kl_values
from alignlab.losses.logps import segment_sums, token_counts
from alignlab.types.loss import Ratio

ClipLow = Annotated[float, Field(ge=0, le=1)]
Clip = Annotated[float, Field(ge=0)]
DualClip = Annotated[float, Field(gt=1)] | None
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class PolicyTokens:
    """Sampled tokens of a micro-batch.

    Args:
        token_logps: Log-probabilities under the policy, at the sampling temperature; carry the gradient. Shape ``[N]``.
        advantages: Advantage of each token, which may be that of its completion. Shape ``[N]``.
        sequence_ids: Completion of each token, ascending. Shape ``[N]``.
        num_sequences: S.
        old_token_logps: Log-probabilities under the policy that sampled; ``None`` if that is the policy itself. Shape
            ``[N]``.
        reference_token_logps: Log-probabilities under the reference, if there is one. Shape ``[N]``.
        sampled_token_logps: Log-probabilities that a separate engine reported, if one sampled. Shape ``[N]``.
        entropies: Entropies of the predictions, in nats. Shape ``[N]``.
    """

    token_logps: Tensor
    advantages: Tensor
    sequence_ids: Tensor
    num_sequences: int
    old_token_logps: Tensor | None = None
    reference_token_logps: Tensor | None = None
    sampled_token_logps: Tensor | None = None
    entropies: Tensor | None = None

    def log_ratios(self, level: RatioLevel) -> Tensor:
        """Log of the ratio policy / old policy; see ``importance.log_ratios``. Shape ``[N]``."""
        return log_ratios(self.token_logps, self.old_token_logps, self.sequence_ids, self.num_sequences, level)


class PolicyLoss(NamedTuple):
    """Losses of tokens, and which ratios are clipped.

    Args:
        losses: Carry the gradient. Shape ``[N]``.
        clipped_low: Tokens whose ratio is clipped at the lower bound. Shape ``[N]``, bool.
        clipped_high: Tokens whose ratio is clipped at the upper bound. Shape ``[N]``, bool.
    """

    losses: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def clipped(
    tokens: PolicyTokens, *, clip_low: ClipLow, clip_high: Clip, dual_clip: DualClip, ratio_level: RatioLevel
) -> PolicyLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO, eq. 7; separate bounds as in DAPO (arXiv 2503.14476).

    Args:
        tokens: N tokens.
        clip_low: Distance of the lower bound from 1, for tokens with a negative advantage.
        clip_high: Distance of the upper bound from 1, for tokens with a positive advantage.
        dual_clip: Largest ratio of tokens with a negative advantage (arXiv 1912.09729); ``None`` for no bound.
        ratio_level: Whether the ratio is that of a token or of a completion; ``sequence`` for GSPO (arXiv 2507.18071).
    """
    ratios, advantages = tokens.log_ratios(ratio_level).exp(), tokens.advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high)
    too_low, too_high = ratios < 1 - clip_low, ratios > 1 + clip_high
    ratios = ratios if dual_clip is None else ratios.clamp(max=dual_clip)
    losses = -torch.minimum(ratios * advantages, bounded * advantages)
    return PolicyLoss(losses, too_low & (advantages < 0), too_high & (advantages > 0))


def cispo(tokens: PolicyTokens, *, clip_low: ClipLow | None, clip_high: Clip, ratio_level: RatioLevel) -> PolicyLoss:
    """-sg(clip(r)) A log policy: clipping bounds the weight of a gradient (arXiv 2506.13585, eq. 4 and 5).

    Args:
        tokens: N tokens.
        clip_low: Distance of the lower bound from 1; ``None`` for no lower bound.
        clip_high: Distance of the upper bound from 1.
        ratio_level: Whether the ratio is that of a token or of a completion.

    Returns:
        Losses with the right gradient; their values are not meaningful. Tokens of any advantage can be clipped.
    """
    ratios, lowest = tokens.log_ratios(ratio_level).exp().detach(), 0 if clip_low is None else 1 - clip_low
    losses = -ratios.clamp(lowest, 1 + clip_high) * tokens.advantages * tokens.token_logps
    return PolicyLoss(losses, ratios < lowest, ratios > 1 + clip_high)


def sapo(
    tokens: PolicyTokens, *, temperature_positive: Positive, temperature_negative: Positive, ratio_level: RatioLevel
) -> PolicyLoss:
    """-(4/τ) σ(τ (r - 1)) A: the gradient decays smoothly with the ratio instead of being clipped (arXiv 2511.20347).

    Args:
        tokens: N tokens.
        temperature_positive: τ of tokens with a positive advantage; with a larger one the gradient decays sooner.
        temperature_negative: τ of the other tokens.
        ratio_level: Whether the ratio is that of a token or of a completion.
    """
    ratios, advantages = tokens.log_ratios(ratio_level).exp(), tokens.advantages
    temperatures = torch.full_like(advantages, temperature_negative).masked_fill(advantages > 0, temperature_positive)
    return _unclipped(-torch.sigmoid(temperatures * (ratios - 1)) * 4 / temperatures * advantages)


def gmpo(tokens: PolicyTokens, *, clip_low: Clip, clip_high: Clip) -> PolicyLoss:
    """-A times the geometric mean of a completion's clipped ratios (arXiv 2507.20673).

    Args:
        tokens: N tokens; the advantage is that of the completion.
        clip_low: Distance of the log-ratio's lower bound from 0, for tokens without a positive advantage.
        clip_high: Distance of the log-ratio's upper bound from 0, for tokens with a positive advantage.
    """
    ratios, good = tokens.log_ratios("token"), tokens.advantages > 0
    bounded = torch.where(good, ratios.clamp(max=clip_high), ratios.clamp(min=-clip_low))
    counts = token_counts(tokens.sequence_ids, tokens.num_sequences, ratios.dtype)
    means = segment_sums(bounded, tokens.sequence_ids, tokens.num_sequences) / counts
    losses = -means.exp()[tokens.sequence_ids] * tokens.advantages
    return PolicyLoss(losses, (ratios < -clip_low) & (tokens.advantages < 0), (ratios > clip_high) & good)


def vespo(
    tokens: PolicyTokens,
    *,
    power_positive: Clip,
    rate_positive: Positive,
    power_negative: Clip,
    rate_negative: Positive,
) -> PolicyLoss:
    """-sg(w^k e^(λ(1 - w))) A log policy, with w the ratio of the whole completion (arXiv 2602.10693).

    Args:
        tokens: N tokens.
        power_positive: k of completions with an advantage of at least 0.
        rate_positive: λ of completions with an advantage of at least 0.
        power_negative: k of the other completions.
        rate_negative: λ of the other completions.
    """
    ratios, good = tokens.log_ratios("sequence_sum").detach(), tokens.advantages >= 0
    powers, rates = (
        torch.full_like(ratios, negative).masked_fill(good, positive)
        for positive, negative in ((power_positive, power_negative), (rate_positive, rate_negative))
    )
    weights = (powers * ratios + rates * (1 - ratios.exp())).exp()
    return _unclipped(-weights * tokens.advantages * tokens.token_logps)


def _unclipped(losses: Tensor) -> PolicyLoss:
    nothing = torch.zeros_like(losses, dtype=torch.bool)
    return PolicyLoss(losses, nothing, nothing)


def policy_metrics(tokens: PolicyTokens, loss: PolicyLoss) -> dict[str, Ratio]:
    """Metrics as means over tokens: clipping, ratio and approximate KL; entropy and KL if ``tokens`` has their values.

    Args:
        tokens: N tokens.
        loss: Their loss.
    """
    ratios = tokens.log_ratios("token").detach()
    values = {
        "clip_fraction": loss.clipped_low | loss.clipped_high,
        "clip_fraction_low": loss.clipped_low,
        "clip_fraction_high": loss.clipped_high,
        "ratio": ratios.exp(),
        "approx_kl": ratios.expm1() - ratios,
    }
    if tokens.entropies is not None:
        values["entropy"] = tokens.entropies.detach()
    if tokens.reference_token_logps is not None:
        values["kl"] = kl_values(tokens.token_logps.detach(), tokens.reference_token_logps, "k3")
    count = ratios.new_tensor(ratios.numel())
    return {name: Ratio(value.sum(), count) for name, value in values.items()}
