"""Sampling of the next token from logits: temperature, repetition penalty, top-k, top-p, min-p.

The order is that of Transformers: penalty, temperature, top-k, top-p (Holtzman et al. 2019, arXiv 1904.09751), min-p
(Nguyen et al. 2024, arXiv 2407.01082). A token is sampled by inverting the cumulative distribution at one uniform
number per row. This is faster than Gumbel noise over the vocabulary, and the tokens of a row depend only on its own
numbers.

Departures:

1. All tokens that are as probable as the last one of the nucleus are kept, so that ties do not depend on an order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

# Number of most probable tokens in which the nucleus is searched before a whole row is sorted.
HEAD = 16


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How completions are sampled and where they end.

    Args:
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Number of most probable tokens to sample from; 0 for all.
        top_p: Cumulative probability of the tokens to sample from; 1 for all.
        min_p: Minimum probability of a token relative to the most probable one; 0 for none.
        repetition_penalty: Divides positive and multiplies negative logits of tokens in the prompt or the completion; 1
            for none (Keskar et al. 2019, arXiv 1909.05858).
        max_completion_tokens: Maximum number of tokens of a completion.
        stop_tokens: Tokens that end a completion.
        stop_strings: Strings that end a completion as soon as it contains one.
    """

    temperature: Annotated[float, Field(ge=0)]
    top_k: Annotated[int, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    min_p: Annotated[float, Field(ge=0, le=1)]
    repetition_penalty: Annotated[float, Field(gt=0)]
    max_completion_tokens: Annotated[int, Field(ge=1)]
    stop_tokens: Sequence[int]
    stop_strings: Sequence[str]


def draw(logits: Tensor, noise: Tensor, settings: SamplingSettings, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sample the next token of every row.

    Args:
        logits: Logits. Shape ``[R, V]``, float32.
        noise: Uniform numbers in [0, 1), float64; not used at temperature 0. Shape ``[R]``.
        settings: Sampling settings.
        seen: Mask of the tokens in a row, for the repetition penalty, bool. Shape ``[R, V]``.

    Returns:
        Tokens ``[R]``, and their log-probs ``[R]`` at this temperature (at 1 if it is 0), before penalty, top-k, top-p
        and min-p, as in the training forward.
    """
    temperature = settings.temperature or 1.0
    log_probs = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    adjusted = logits if seen is None else penalise(logits, seen, settings.repetition_penalty)
    if settings.temperature == 0:
        tokens = adjusted.argmax(-1)
    else:
        probs = log_probs.exp() if seen is None else (adjusted / temperature).softmax(-1)
        tokens = invert(truncate(probs, settings), noise)
    return tokens, log_probs.gather(-1, tokens[:, None])[:, 0]


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Apply the repetition penalty.

    Args:
        logits: Logits. Shape ``[R, V]``.
        seen: Mask of the tokens in a row. Shape ``[R, V]``, bool.
        penalty: Above 1 makes these tokens less probable, below 1 more probable.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def truncate(probs: Tensor, settings: SamplingSettings) -> Tensor:
    """Set the probabilities of excluded tokens to 0, without normalising the others.

    Args:
        probs: Probabilities. Shape ``[R, V]``.
        settings: ``top_k``, ``top_p`` and ``min_p`` are applied in this order, each to the result of the one before.
    """
    if 0 < settings.top_k < probs.shape[-1]:
        probs = _at_least(probs, probs.topk(settings.top_k).values[:, -1:])
    if settings.top_p < 1:
        probs = _at_least(probs, _nucleus_edge(probs, settings.top_p * probs.sum(-1, keepdim=True)))
    if settings.min_p > 0:
        probs = _at_least(probs, settings.min_p * probs.amax(-1, keepdim=True))
    return probs


def invert(weights: Tensor, noise: Tensor) -> Tensor:
    """The token at which the cumulative weights exceed ``noise`` times their sum. Shape ``[R]``.

    Args:
        weights: Non-negative weights, not necessarily normalised. Shape ``[R, V]``.
        noise: Uniform numbers in [0, 1), float64. Shape ``[R]``.
    """
    # float64, because a float32 sum over a large vocabulary is too coarse for rare tokens.
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    edges = noise[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, edges, right=True)[:, 0].clamp(max=weights.shape[-1] - 1)


def _at_least(probs: Tensor, least: Tensor) -> Tensor:
    return probs.masked_fill(probs < least, 0.0)


def _nucleus_edge(probs: Tensor, mass: Tensor) -> Tensor:
    """Probability of the last token needed to reach the mass, most probable first. Shape ``[R, 1]``."""
    head = probs.topk(min(HEAD, probs.shape[-1])).values
    edge = _edge(head, mass)
    short = (head.sum(-1, keepdim=True) < mass)[:, 0].nonzero()[:, 0]
    if len(short):  # sort the whole vocabulary only for the few rows that need it
        edge[short] = _edge(probs[short].sort(descending=True).values, mass[short])
    return edge


def _edge(descending: Tensor, mass: Tensor) -> Tensor:
    needed = (descending.cumsum(-1) < mass).sum(-1, keepdim=True)
    return descending.gather(-1, needed.clamp(max=descending.shape[-1] - 1))
