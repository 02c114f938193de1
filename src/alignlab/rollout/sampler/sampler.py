"""Completions drawn from the weights in training: ``rollout=hf``.

A prompt is computed once for all its completions. Each of them has uniform numbers of its own, one per token, drawn
before anything else, so what is drawn for it does not depend on its neighbours or on ``batch_size`` (up to a rounding
difference that falls on the edge between two tokens). Rows that have ended leave, and waiting completions take their
place, as soon as enough of them have ended to pay for the move.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.rollout.completions import Completions
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.sampler.completion_buffer import CompletionBuffer
from alignlab.rollout.sampler.decoder import Decoder, device_of
from alignlab.rollout.sampler.probe import decoder_for
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.sampler.stopping import Stopping

ENDED_SHARE = 0.125
"""Share of ended rows at which the others move together."""


class PolicySampler(Sampler):
    """Draws from the policy itself.

    Args:
        temperature: As in ``SamplingSettings``, like the five after it.
        top_k: Tokens to draw from; 0 for all.
        top_p: Probability to draw from; 1 for all.
        min_p: Least probability, as a share of the largest; 0 for all.
        repetition_penalty: 1 for none.
        max_completion_tokens: Most tokens of a completion.
        stop_strings: Texts that end a completion.
        batch_size: Completions at once.
        dtype: Number format of the weights while sampling; None leaves them as they are.
    """

    def __init__(
        self,
        *,
        temperature: Annotated[float, Field(ge=0)],
        top_k: Annotated[int, Field(ge=0)],
        top_p: Annotated[float, Field(gt=0, le=1)],
        min_p: Annotated[float, Field(ge=0, le=1)],
        repetition_penalty: Annotated[float, Field(gt=0)],
        max_completion_tokens: Annotated[int, Field(ge=1)],
        stop_strings: list[str],
        batch_size: Annotated[int, Field(ge=1)],
        dtype: Literal["bfloat16", "float16"] | None,
    ):
        self.temperature, self.max_completion_tokens = temperature, max_completion_tokens
        self.is_exact = dtype is None
        self.draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        self.draw |= {"repetition_penalty": repetition_penalty, "max_completion_tokens": max_completion_tokens}
        self.stop_strings, self.batch_size = stop_strings, batch_size
        self.dtype = getattr(torch, dtype) if dtype else None

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        stop_tokens: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | Sequence[torch.Generator],
        greedy: bool = False,
    ) -> Completions:
        """Draw completions, or write the most probable; arguments, returns and raises as ``sample``."""
        draw = self.draw | {"temperature": 0.0} if greedy else self.draw
        settings = SamplingSettings(**draw, stop_tokens=stop_tokens, stop_strings=self.stop_strings)
        with narrowed(model, self.dtype):
            return sample(
                model,
                prompts,
                num_completions=num_completions,
                settings=settings,
                tokenizer=tokenizer,
                pad_token_id=tokenizer.pad_token_id,
                batch_size=self.batch_size,
                generator=generator,
            )


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    num_completions: int,
    settings: SamplingSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    pad_token_id: int,
    batch_size: int,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Completions:
    """Draw completions of prompts.

    Args:
        model: A causal language model of Transformers, with or without an adapter; dropout is off meanwhile, and every
            module is left in the mode it came in. Its weights must be whole on this device; ranks need not agree on
            anything.
        prompts: Token ids, none empty.
        num_completions: G.
        settings: How to draw.
        tokenizer: For stop strings; may be None without any.
        pad_token_id: Filling on the left of shorter prompts, masked by position.
        batch_size: Completions at once.
        generator: Source of all randomness, or one per prompt; on any device.

    Returns:
        G completions per prompt, in the order of the prompts.

    Raises:
        InputError: A prompt is empty, stop strings without tokenizer, or the architecture cannot be sampled from.
    """
    if not all(prompts):
        raise InputError("completing prompts", "one of them has no tokens", "Leave empty prompts out")
    if not prompts:
        return Completions.of([])
    limits = [room(model, len(prompt), settings.max_completion_tokens) for prompt in prompts]
    stopping = Stopping(
        settings, tokenizer, vocab_size=model.config.get_text_config().vocab_size, device=device_of(model)
    )
    buffer = CompletionBuffer(prompts, limits, num_completions, settings, stopping, generator)
    with _in_eval_mode(model):
        decoder = decoder_for(model)(model, prompts, pad_token_id)
        _fill(buffer, decoder, batch_size)
    return buffer.completions()


def room(model: nn.Module, num_prompt_tokens: int, max_completion_tokens: int) -> int:
    """Tokens that may still be written: the limit, or what the model's context leaves; at least 1."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    left = max_completion_tokens if context is None else context - num_prompt_tokens
    return max(1, min(max_completion_tokens, left))


@contextmanager
def narrowed(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """The model's float32 weights as narrower numbers for a while; they come back as they were.

    Args:
        model: Its weights must be whole on this device.
        dtype: None changes nothing.
    """
    wide = [(p, p.data) for p in model.parameters() if dtype is not None and p.dtype == torch.float32]
    try:
        for parameter, values in wide:
            parameter.data = values.to(dtype)
        yield
    finally:
        for parameter, values in wide:
            parameter.data = values


def _fill(buffer: CompletionBuffer, decoder: Decoder, batch_size: int) -> None:
    """Write every completion of the ledger, at most ``batch_size`` at once."""
    rows, opened, total = None, 0, len(buffer)
    while rows or opened < total:
        fresh = range(opened, min(total, opened + batch_size - len(rows or ())))
        if fresh and (not rows or decoder.joins):
            new = buffer.open(fresh, decoder.admit([buffer.prompt_of(number) for number in fresh]))
            rows, opened = rows.and_(new) if rows else new, fresh.stop
        tokens = buffer.write(rows)
        if int(rows.alive.sum()) <= (1 - ENDED_SHARE) * len(rows):
            buffer.close(rows)
            going = rows.alive.nonzero()[:, 0]
            decoder.keep(going)
            rows, tokens = rows.at(going), tokens[going]
        if rows:
            rows.logits = decoder.step(tokens)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout is off; every module gets its own mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
