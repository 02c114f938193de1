"""Completions sampled from the policy itself: ``rollout=hf``.

A prompt is computed once for all its completions. The random numbers of each completion, one per token, are drawn in
advance, so a completion does not depend on the other rows or on ``batch_size``, except through rounding. Rows are
completions that are being sampled. When enough of them have ended, they are removed, and new completions are started.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.models.compiled import uncompiled
from alignlab.rollout.completions import Completions
from alignlab.rollout.sampler.base import OnProgress, Sampler, SamplingProgress, ignore
from alignlab.rollout.sampler.completion_buffer import CompletionBuffer
from alignlab.rollout.sampler.decoder import Decoder, device_of
from alignlab.rollout.sampler.probe import decoder_for
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.sampler.stopping import Stopping
from alignlab.types.rows import TokenRow


class PolicySampler(Sampler):
    """Samples from the policy itself; see ``SamplingSettings``.

    Args:
        temperature: Sampling temperature; 0 for greedy completions.
        top_k: Number of most probable tokens to sample from; 0 for all.
        top_p: Cumulative probability to sample from; 1 for all.
        min_p: Minimum probability relative to the most probable token; 0 for none.
        repetition_penalty: Repetition penalty; 1 for none.
        max_completion_tokens: Maximum number of tokens of a completion.
        stop_strings: Strings that end a completion.
        batch_size: Number of completions sampled at once.
        dtype: Dtype of float32 weights while sampling; None for no conversion.
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
        prompts: Sequence[TokenRow],
        *,
        num_completions: int,
        stop_tokens: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        generator: torch.Generator | Sequence[torch.Generator],
        greedy: bool = False,
    ) -> Completions:
        """Sample completions, or decode greedily; see ``sample`` for arguments, returns and raises."""
        draw = self.draw | {"temperature": 0.0} if greedy else self.draw
        settings = SamplingSettings(**draw, stop_tokens=stop_tokens, stop_strings=self.stop_strings)
        with converted(model, self.dtype):
            return sample(
                model,
                [row.tokens for row in prompts],
                num_completions=num_completions,
                settings=settings,
                tokenizer=tokenizer,
                pad_token_id=tokenizer.pad_token_id,
                batch_size=self.batch_size,
                generator=generator,
                on_progress=self.on_progress,
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
    on_progress: OnProgress = ignore,
) -> Completions:
    """Sample completions of prompts.

    Args:
        model: A causal language model of Transformers, with or without an adapter, not sharded. It is used in eval
            mode, and its mode is restored. Ranks need not call this together.
        prompts: Token ids of P prompts, none empty.
        num_completions: G, the number of completions per prompt.
        settings: Sampling settings.
        tokenizer: Tokenizer, for stop strings; None if there are none.
        pad_token_id: Padding token, on the left.
        batch_size: Number of completions sampled at once.
        generator: Random generator, or one per prompt; on any device.
        on_progress: Called after each token of the completions that are sampled at once.

    Returns:
        G completions per prompt, in the order of the prompts.

    Raises:
        InputError: A prompt is empty, stop strings without tokenizer, or the architecture is not supported.
    """
    if not all(prompts):
        raise InputError("completing prompts", "one of them has no tokens", "Remove empty prompts")
    if not prompts:
        return Completions.of([])
    limits = [completion_limit(model, len(prompt), settings.max_completion_tokens) for prompt in prompts]
    stopping = Stopping(
        settings, tokenizer, vocab_size=model.config.get_text_config().vocab_size, device=device_of(model)
    )
    buffer, started = (
        CompletionBuffer(prompts, limits, num_completions, settings, stopping, generator),
        time.monotonic(),
    )

    def report(num_ended: int, num_tokens: int) -> None:
        counts = {"num_ended": num_ended, "num_completions": len(buffer), "num_tokens": num_tokens}
        counts["max_tokens"] = num_completions * sum(limits)
        on_progress(SamplingProgress(**counts, seconds=time.monotonic() - started))

    with _in_eval_mode(model), uncompiled(model):
        decoder = decoder_for(model)(model, prompts, pad_token_id)
        _fill(buffer, decoder, batch_size, report)
    return buffer.completions()


def completion_limit(model: nn.Module, num_prompt_tokens: int, max_completion_tokens: int) -> int:
    """Maximum number of completion tokens within the model's context; at least 1."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    left = max_completion_tokens if context is None else context - num_prompt_tokens
    return max(1, min(max_completion_tokens, left))


@contextmanager
def converted(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Convert float32 weights to another dtype within the context, and restore them.

    Args:
        model: A model that is not sharded.
        dtype: Dtype of the weights; None for no conversion.
    """
    originals = [(p, p.data) for p in model.parameters() if dtype is not None and p.dtype == torch.float32]
    try:
        for parameter, values in originals:
            parameter.data = values.to(dtype)
        yield
    finally:
        for parameter, values in originals:
            parameter.data = values


def _fill(buffer: CompletionBuffer, decoder: Decoder, batch_size: int, report: Callable[[int, int], None]) -> None:
    """Sample all completions of the buffer, at most ``batch_size`` at once; report how many ended, and tokens."""
    rows, total = None, len(buffer)
    num_started = num_active = num_tokens = 0
    while rows or num_started < total:
        numbers = range(num_started, min(total, num_started + batch_size - len(rows or ())))
        if numbers and (not rows or decoder.can_add_rows):
            new = buffer.open(numbers, decoder.add_rows([buffer.prompt_of(number) for number in numbers]))
            rows, num_started, num_active = rows.concatenate(new) if rows else new, numbers.stop, num_active + len(new)
        num_tokens += num_active
        tokens = buffer.write(rows)
        num_active = int(rows.active.sum())
        report(num_started - num_active, num_tokens)
        if num_active <= (1 - decoder.ended_share) * len(rows):
            buffer.close(rows)
            kept = rows.active.nonzero()[:, 0]
            decoder.keep(kept)
            rows, tokens = rows.at(kept), tokens[kept]
        if rows:
            rows.logits = decoder.step(tokens)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Use eval mode within the context, and restore the mode of every module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
