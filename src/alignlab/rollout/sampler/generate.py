"""Greedy completions of many prompts, for evaluation."""

from collections.abc import Sequence

import torch
from torch import nn

from alignlab.rollout.sampler.sampler import sample
from alignlab.rollout.sampler.sampling import SamplingSettings

# Greedy decoding; the generation config of the model has no effect.
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "stop_strings": ()}


def complete(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_completion_tokens: int,
    stop_tokens: Sequence[int],
    pad_token_id: int,
    batch_size: int,
) -> list[list[int]]:
    """Complete prompts greedily, until a stop token or the maximum length.

    Args:
        model: A causal language model of Transformers, with or without an adapter; its mode is restored.
        prompts: Token ids of the prompts, none empty.
        max_completion_tokens: Maximum number of tokens of a completion.
        stop_tokens: Tokens that end a completion, which includes them.
        pad_token_id: Padding token, on the left.
        batch_size: Number of prompts completed at once.

    Returns:
        Token ids of each completion, in the order of the prompts.

    Raises:
        InputError: A prompt is empty, or the architecture is not supported.
    """
    settings = SamplingSettings(max_completion_tokens=max_completion_tokens, stop_tokens=stop_tokens, **GREEDY)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completed = sample(
        model,
        [prompts[i] for i in by_length],
        num_completions=1,
        settings=settings,
        tokenizer=None,
        pad_token_id=pad_token_id,
        batch_size=batch_size,
        generator=torch.Generator(),
    )
    tokens = dict(zip(by_length, completed.token_lists(), strict=True))
    return [tokens[i] for i in range(len(prompts))]
