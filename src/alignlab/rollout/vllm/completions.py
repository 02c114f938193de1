"""Completions with log-probabilities from a vLLM server.

Each prompt is a request of its own with a seed of its own, so what is drawn for it depends neither on the other prompts
nor on how many servers share them (up to rounding, which may differ with what a server computes at the same time).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.errors import InputError
from alignlab.rollout.completions import Completion
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.vllm.client import Unreachable, call


def logprobs_mode(settings: SamplingSettings) -> str:
    """What a server must be started to report, so that it is the whole distribution at the sampling temperature.

    vLLM reports log-probabilities of either the logits as the model gives them, or of what tokens are drawn from, where
    truncation and penalty have done their work as well.

    Raises:
        InputError: It can report neither, because a temperature comes together with truncation or a penalty.
    """
    faults = [mode for mode in ("processed_logprobs", "raw_logprobs") if _unfit(settings, mode)]
    if len(faults) == 2:
        raise InputError(
            f"rollout=vllm with a temperature of {settings.temperature}, {_narrowings(settings)}",
            "vLLM gives log-probabilities of the distribution before temperature or after truncation, and training "
            "needs those in between",
            "Sample at temperature 1, or from the whole distribution, or with rollout=hf",
        )
    return "raw_logprobs" if faults == ["processed_logprobs"] else "processed_logprobs"


def check_mode(url: str, mode: str, settings: SamplingSettings) -> None:
    """Refuse to sample from a server whose log-probabilities would be of another distribution.

    Raises:
        InputError: So it is.
    """
    wanted = logprobs_mode(settings)
    if _unfit(settings, mode):
        asked = f"sampling from {url} at temperature {settings.temperature}, {_narrowings(settings)}"
        raise InputError(asked, f"it runs with --logprobs-mode {mode}", f"Start it with --logprobs-mode {wanted}")


def _unfit(settings: SamplingSettings, mode: str) -> bool:
    narrow = (settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty) != (0, 1, 0, 1)
    return {"processed_logprobs": narrow, "raw_logprobs": settings.temperature not in (0, 1)}.get(mode, True)


def _narrowings(settings: SamplingSettings) -> str:
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    return ", ".join(f"{name} {getattr(settings, name)}" for name in names)


def complete(url: str, body: Mapping[str, Any], *, num_completions: int, timeout_seconds: float) -> list[Completion]:
    """Have one prompt completed.

    Args:
        url: Of a server.
        body: From ``completion_request``.
        num_completions: G.
        timeout_seconds: Longest wait.

    Raises:
        Unreachable, Refused: As in ``call``; also where the server broke off.
    """
    choices = call(url, "/v1/completions", body, timeout_seconds=timeout_seconds)["choices"]
    ends = {choice["finish_reason"] for choice in choices}
    if len(choices) != body["n"] or not ends <= {"stop", "length"}:
        raise Unreachable(f"{url} broke off: {len(choices)} of {body['n']} completions, ended by {sorted(ends)}")
    found = [_completion(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]
    return found * (num_completions // len(found))


def _completion(choice: Mapping[str, Any]) -> Completion:
    return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop")


def completion_request(
    model: str, prompt: Sequence[int], *, num_completions: int, settings: SamplingSettings, seed: int, context: int
) -> dict[str, Any]:
    """Body of a request for the completions of one prompt.

    Args:
        model: Name of the weights to draw from.
        prompt: Token ids.
        num_completions: G; greedy completions are all the same, and asked for once.
        settings: How to draw.
        seed: Of the first completion, below 2**62; the server counts on from it.
        context: Most tokens of prompt and completion together.

    Raises:
        InputError: The prompt is empty or leaves no room.
    """
    if not 0 < len(prompt) < context:
        raise InputError(
            f"completing a prompt of {len(prompt)} tokens",
            f"the vLLM server takes prompts of 1 to {context - 1} tokens",
            "Leave the prompt out, or raise rollout.max_tokens_per_sequence",
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
        "ignore_eos": True,  # the stop tokens above and no others
        "skip_special_tokens": False,  # a stop string may be the text of one
        "logprobs": 0,  # of the drawn token alone
        "return_token_ids": True,
    }
