"""One token per row from a row's logits: temperature, repetition penalty, top-k, top-p, min-p.

The order is that of Transformers: penalty, temperature, top-k, top-p (Holtzman et al. 2019, arXiv 1904.09751), min-p
(Nguyen et al. 2024, arXiv 2407.01082). A token is found by inverting the cumulative distribution at one uniform number
per row, which costs a fraction of a Gumbel draw over the vocabulary and lets a row's draws depend on nothing but its
own numbers.

Departures:

1. Tokens as probable as the last one of the nucleus stay in it too, so that the nucleus does not depend on an order of
   equals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

# Most probable tokens that are looked at before a whole row is sorted to find its nucleus.
HEAD = 16


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How completions are drawn and where they end.

    Args:
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to draw from, the most probable; 0 for all.
        top_p: Probability that the tokens to draw from make up together; 1 for all.
        min_p: Least probability of a token, as a share of that of the most probable; 0 for all.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that the prompt or the completion
            has; 1 for none (Keskar et al. 2019, arXiv 1909.05858).
        max_completion_tokens: Most tokens of a completion.
        stop_tokens: Tokens that end a completion.
        stop_strings: Texts that end a completion as soon as it contains one.
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
    """Choose the next token of every row.

    Args:
        logits: Shape ``[R, V]``, float32.
        noise: Uniform numbers in [0, 1), float64; not read at temperature 0. Shape ``[R]``.
        settings: How to choose.
        seen: Tokens that a row has already, for the repetition penalty, bool. Shape ``[R, V]``.

    Returns:
        Tokens ``[R]``, and their log-probabilities ``[R]`` under the model at this temperature (at 1 where it is 0),
        over the whole vocabulary, before penalty and truncation: what a training forward gives them.
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
    """Make tokens that a row has already less probable.

    Args:
        logits: Shape ``[R, V]``.
        seen: Shape ``[R, V]``, bool.
        penalty: Above 1 less probable, below 1 more.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def truncate(probs: Tensor, settings: SamplingSettings) -> Tensor:
    """Zero for the tokens that are not to be drawn; the others keep their value, not normalised anew.

    Args:
        probs: Shape ``[R, V]``.
        settings: Its ``top_k``, ``top_p`` and ``min_p``, each with respect to what the one before left.
    """
    if 0 < settings.top_k < probs.shape[-1]:
        probs = _at_least(probs, probs.topk(settings.top_k).values[:, -1:])
    if settings.top_p < 1:
        probs = _at_least(probs, _nucleus_edge(probs, settings.top_p * probs.sum(-1, keepdim=True)))
    if settings.min_p > 0:
        probs = _at_least(probs, settings.min_p * probs.amax(-1, keepdim=True))
    return probs


def invert(weights: Tensor, noise: Tensor) -> Tensor:
    """The token at which the cumulative weights pass ``noise`` times their sum.

    Args:
        weights: Not negative, in any scale. Shape ``[R, V]``.
        noise: In [0, 1), float64. Shape ``[R]``.
    """
    # float64: in float32 the sum over a large vocabulary is too coarse for its rare tokens.
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
    if len(short):  # few rows are so flat that their whole vocabulary must be sorted
        edge[short] = _edge(probs[short].sort(descending=True).values, mass[short])
    return edge


def _edge(descending: Tensor, mass: Tensor) -> Tensor:
    needed = (descending.cumsum(-1) < mass).sum(-1, keepdim=True)
    return descending.gather(-1, needed.clamp(max=descending.shape[-1] - 1))
