"""Greedy completions of many prompts, for evaluation."""

from collections.abc import Sequence

import torch
from torch import nn

from alignlab.errors import InputError

# Said outright, because a model's own generation config may ask for something else.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}


@torch.no_grad()
def complete(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_completion_tokens: int,
    stop_tokens: Sequence[int],
    pad_token_id: int,
    batch_size: int,
) -> list[list[int]]:
    """Complete prompts greedily until a stop token or the limit.

    Args:
        model: A causal language model of Transformers, with or without an adapter; left in the mode it came in.
        prompts: Token ids, none empty.
        max_completion_tokens: Most tokens of a completion.
        stop_tokens: Tokens that end a completion; the one that did stands at its end.
        pad_token_id: Filling on the left of shorter prompts, masked by position.
        batch_size: Prompts completed at once.

    Returns:
        Token ids of each completion, in the order of the prompts.

    Raises:
        InputError: A prompt is empty.
    """
    if not all(prompts):
        raise InputError("completing prompts", "one of them has no tokens", "Leave empty prompts out")
    device, was_training = next(model.parameters()).device, model.training
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions: dict[int, list[int]] = {}
    model.eval()
    try:
        for start in range(0, len(by_length), batch_size):
            chosen = by_length[start : start + batch_size]
            width = len(prompts[chosen[-1]])
            rows = [[pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in chosen]
            masks = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen]
            output = model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                max_new_tokens=room(model, width, max_completion_tokens),
                eos_token_id=list(stop_tokens),
                pad_token_id=pad_token_id,
                **GREEDY,
            )
            for i, tokens in zip(chosen, output[:, width:].tolist(), strict=True):
                completions[i] = _until_stop(tokens, stop_tokens)
    finally:
        model.train(was_training)
    return [completions[i] for i in range(len(prompts))]


def room(model: nn.Module, num_prompt_tokens: int, max_completion_tokens: int) -> int:
    """Tokens that may still be written: the limit, or what the model's context leaves."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    left = max_completion_tokens if context is None else context - num_prompt_tokens
    return max(1, min(max_completion_tokens, left))


def _until_stop(tokens: list[int], stop_tokens: Sequence[int]) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in stop_tokens]
    return tokens[: ends[0] + 1] if ends else tokens
