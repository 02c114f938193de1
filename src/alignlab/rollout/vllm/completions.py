"""Completions with log-probs from a vLLM server.

Each prompt is a separate request with its own seed, so its completions do not depend on the other prompts or on the
number of servers, except through rounding, which may depend on the other requests of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.errors import InputError
from alignlab.rollout.completions import Completion
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.vllm.client import Unreachable, call


def logprobs_mode(settings: SamplingSettings) -> str:
    """The ``--logprobs-mode`` in which a server reports log-probs at the sampling temperature, over all tokens.

    vLLM reports log-probs either of the raw logits, or of the distribution that it samples from, after temperature,
    repetition penalty, top-k, top-p and min-p.

    Raises:
        InputError: Neither mode does, because a temperature is combined with a penalty, top-k, top-p or min-p.
    """
    wrong = [mode for mode in ("processed_logprobs", "raw_logprobs") if _is_wrong_mode(settings, mode)]
    if len(wrong) == 2:
        raise InputError(
            f"rollout=vllm with a temperature of {settings.temperature}, {_truncation(settings)}",
            "vLLM gives log-probs before temperature or after truncation, and training needs those after temperature "
            "and before truncation",
            "Sample at temperature 1, or without truncation and penalty, or with rollout=hf",
        )
    return "raw_logprobs" if wrong == ["processed_logprobs"] else "processed_logprobs"


def check_mode(url: str, mode: str, settings: SamplingSettings) -> None:
    """Check that a server reports log-probs of the right distribution.

    Raises:
        InputError: It runs in another mode.
    """
    wanted = logprobs_mode(settings)
    if _is_wrong_mode(settings, mode):
        asked = f"sampling from {url} at temperature {settings.temperature}, {_truncation(settings)}"
        raise InputError(asked, f"it runs with --logprobs-mode {mode}", f"Start it with --logprobs-mode {wanted}")


def _is_wrong_mode(settings: SamplingSettings, mode: str) -> bool:
    is_truncated = (settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty) != (0, 1, 0, 1)
    return {"processed_logprobs": is_truncated, "raw_logprobs": settings.temperature not in (0, 1)}.get(mode, True)


def _truncation(settings: SamplingSettings) -> str:
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    return ", ".join(f"{name} {getattr(settings, name)}" for name in names)


def complete(url: str, body: Mapping[str, Any], *, num_completions: int, timeout_seconds: float) -> list[Completion]:
    """Sample the completions of one prompt.

    Args:
        url: URL of the server.
        body: Body of the request, from ``completion_request``.
        num_completions: G, the number of completions.
        timeout_seconds: Timeout of the request.

    Raises:
        Unreachable, Refused: As in ``call``; also if completions are missing or aborted.
    """
    choices = call(url, "/v1/completions", body, timeout_seconds=timeout_seconds)["choices"]
    ends = {choice["finish_reason"] for choice in choices}
    if len(choices) != body["n"] or not ends <= {"stop", "length"}:
        raise Unreachable(f"{url} aborted: {len(choices)} of {body['n']} completions, ended by {sorted(ends)}")
    found = [_completion(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]
    return found * (num_completions // len(found))


def _completion(choice: Mapping[str, Any]) -> Completion:
    return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop")


def completion_request(
    model: str, prompt: Sequence[int], *, num_completions: int, settings: SamplingSettings, seed: int, context: int
) -> dict[str, Any]:
    """Body of a request for the completions of one prompt.

    Args:
        model: Name of the weights to sample from.
        prompt: Token ids.
        num_completions: G, the number of completions; greedy completions are identical and requested once.
        settings: Sampling settings.
        seed: Seed of the first completion, below 2**62; the server uses the following numbers for the others.
        context: Maximum number of tokens of prompt and completion.

    Raises:
        InputError: The prompt is empty or too long.
    """
    if not 0 < len(prompt) < context:
        raise InputError(
            f"completing a prompt of {len(prompt)} tokens",
            f"the vLLM server takes prompts of 1 to {context - 1} tokens",
            "Remove the prompt, or raise rollout.max_tokens_per_sequence",
        )
    return {
        "model": model,
        "prompt": list(prompt),
        "n": num_completions if settings.temperature > 0 else 1,
        "seed": seed,
        "max_tokens": min(settings.max_completion_tokens, context - len(prompt)),
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "min_p": settings.min_p,
        "repetition_penalty": settings.repetition_penalty,
        "stop": list(settings.stop_strings),
        "stop_token_ids": list(settings.stop_tokens),
        "ignore_eos": True,  # stop only at the stop tokens above
        "skip_special_tokens": False,  # a stop string may be a special token
        "logprobs": 0,  # of the sampled token only
        "return_token_ids": True,
    }
