"""Losses of a policy on completions that it sampled: PPO (arXiv 1707.06347), GRPO (arXiv 2402.03300) and their kin.

A loss gives one value per token; what a token weighs in the mean is settled apart from it, in ``normaliser``. GRPO,
BNPO, DAPO and Dr. GRPO differ in that alone; GSPO, LUSPO and RLOO also in what the ratio is taken of.

1. CISPO's bounds lie around 1, like all the others; ``clip_low: null`` sets none, as in the paper's runs.
2. VESPO and GMPO take their ratio to the policy whose weights sampled, not to the engine's own probabilities.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from alignlab.losses.importance import RatioLevel, log_ratios
from alignlab.losses.kl import kl_values
from alignlab.losses.logps import sequence_sums, token_counts
from alignlab.types.loss import Ratio

ClipLow = Annotated[float, Field(ge=0, le=1)]
Clip = Annotated[float, Field(ge=0)]
DualClip = Annotated[float, Field(gt=1)] | None
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class PolicyTokens:
    """Sampled tokens of a micro-batch.

    Args:
        token_logps: Under the policy, at the temperature of the sampling; carries the gradient. Shape ``[N]``.
        advantages: Of a completion (``advantages[sequence_ids]``) or of each token. Shape ``[N]``.
        sequence_ids: Completion of each token, ascending. Shape ``[N]``.
        num_sequences: S.
        old_token_logps: Under the policy that sampled; ``None``: the same one. Shape ``[N]``.
        reference_token_logps: Under the reference, where one is asked. Shape ``[N]``.
        sampled_token_logps: As another engine reported them, where one sampled. Shape ``[N]``.
        entropies: Of the predictions, in nats. Shape ``[N]``.
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
    """Losses of tokens, and where their ratio was beyond a bound.

    Args:
        losses: Carry the gradient. Shape ``[N]``.
        clipped_low: A bad token whose ratio is too low already. Shape ``[N]``, bool.
        clipped_high: A good token whose ratio is too high already. Shape ``[N]``, bool.
    """

    losses: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


def clipped(
    tokens: PolicyTokens, *, clip_low: ClipLow, clip_high: Clip, dual_clip: DualClip, ratio_level: RatioLevel
) -> PolicyLoss:
    """-min(r A, clip(r, 1 - low, 1 + high) A): PPO, eq. 7; DAPO (arXiv 2503.14476) sets the bounds apart.

    Args:
        tokens: N tokens.
        clip_low: How far below 1 the ratio of a bad token may go.
        clip_high: How far above 1 the ratio of a good token may go.
        dual_clip: Largest ratio of a bad token (arXiv 1912.09729); ``None`` sets none.
        ratio_level: What the ratio is taken of; GSPO's (arXiv 2507.18071) is ``sequence``.
    """
    ratios, advantages = tokens.log_ratios(ratio_level).exp(), tokens.advantages
    bounded = ratios.clamp(1 - clip_low, 1 + clip_high)
    too_low, too_high = ratios < 1 - clip_low, ratios > 1 + clip_high
    ratios = ratios if dual_clip is None else ratios.clamp(max=dual_clip)
    losses = -torch.minimum(ratios * advantages, bounded * advantages)
    return PolicyLoss(losses, too_low & (advantages < 0), too_high & (advantages > 0))


def cispo(tokens: PolicyTokens, *, clip_low: ClipLow | None, clip_high: Clip, ratio_level: RatioLevel) -> PolicyLoss:
    """-sg(clip(r)) A log policy: a large ratio is bounded, its token still learns (arXiv 2506.13585, eq. 4 and 5).

    Args:
        tokens: N tokens.
        clip_low: How far below 1 the weight may go; ``None``: as far as the ratio goes.
        clip_high: How far above 1 the weight may go.
        ratio_level: What the ratio is taken of.

    Returns:
        Losses whose value says little; both indicators mark bounded weights, whatever the advantage.
    """
    ratios, lowest = tokens.log_ratios(ratio_level).exp().detach(), 0 if clip_low is None else 1 - clip_low
    losses = -ratios.clamp(lowest, 1 + clip_high) * tokens.advantages * tokens.token_logps
    return PolicyLoss(losses, ratios < lowest, ratios > 1 + clip_high)


def sapo(
    tokens: PolicyTokens, *, temperature_positive: Positive, temperature_negative: Positive, ratio_level: RatioLevel
) -> PolicyLoss:
    """-(4/τ) σ(τ (r - 1)) A: the ratio fades instead of being cut off (arXiv 2511.20347).

    Args:
        tokens: N tokens.
        temperature_positive: τ of good tokens; a larger one fades sooner.
        temperature_negative: τ of the others.
        ratio_level: What the ratio is taken of.
    """
    ratios, advantages = tokens.log_ratios(ratio_level).exp(), tokens.advantages
    temperatures = torch.full_like(advantages, temperature_negative).masked_fill(advantages > 0, temperature_positive)
    return _unclipped(-torch.sigmoid(temperatures * (ratios - 1)) * 4 / temperatures * advantages)


def gmpo(tokens: PolicyTokens, *, clip_low: Clip, clip_high: Clip) -> PolicyLoss:
    """-A times the geometric mean of a completion's clipped ratios (arXiv 2507.20673).

    Args:
        tokens: N tokens; the advantage is that of the completion.
        clip_low: How far below 0 the log-ratio of a bad token may go.
        clip_high: How far above 0 the log-ratio of a good token may go.
    """
    ratios, good = tokens.log_ratios("token"), tokens.advantages > 0
    bounded = torch.where(good, ratios.clamp(max=clip_high), ratios.clamp(min=-clip_low))
    counts = token_counts(tokens.sequence_ids, tokens.num_sequences, ratios.dtype)
    means = sequence_sums(bounded, tokens.sequence_ids, tokens.num_sequences) / counts
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
        rate_positive: λ of the same.
        power_negative: k of the others.
        rate_negative: λ of the others.
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
    """Means over the tokens: clipping, ratio, drift, and what is known of entropy and KL.

    Args:
        tokens: N tokens.
        loss: What a loss made of them.
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
