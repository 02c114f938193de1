"""Requests to a vLLM server over HTTP, and what it says of itself and of a probe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from alignlab.errors import InputError

DIRECT = build_opener(ProxyHandler({}))
"""Servers are machines of the same house; a proxy of the environment would not know them."""

MAX_DETAIL = 600


class Unreachable(RuntimeError):
    """A server gave no answer, or said that something in it broke; it may come back."""


class Refused(RuntimeError):
    """A server understood what was asked and will not do it."""


@dataclass(frozen=True)
class Facts:
    """What a server says of itself.

    Args:
        model: Name under which it serves its base weights.
        context: Most tokens of a prompt with its completion.
        logprobs_mode: What its log-probabilities are of, see ``completions.logprobs_mode``.
        packs_tied_head: Whether its workers carry ``extension.alignlab_worker.PackTiedHead``.
    """

    model: str
    context: int
    logprobs_mode: str
    packs_tied_head: bool


def call(url: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float) -> Any:
    """One request: a GET without ``body``, else a POST of it as JSON.

    Returns:
        The JSON of the answer, or its text where it is none.

    Raises:
        Unreachable: No answer, or one of the server's own failures (status 500 and above).
        Refused: Any other status than success.
    """
    data = None if body is None else json.dumps(body).encode()
    request = Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=timeout_seconds) as answer:
            text = answer.read().decode()
    except HTTPError as error:
        detail = error.read().decode(errors="replace")[:MAX_DETAIL]
        kind = Unreachable if error.code >= 500 else Refused
        raise kind(f"{url}{path} answered {error.code}: {detail}") from error
    except (OSError, HTTPException) as error:
        raise Unreachable(f"{url}{path} did not answer: {error}") from error
    return json.loads(text) if text[:1] in ("{", "[") else text


def facts(url: str, *, timeout_seconds: float) -> Facts:
    """Ask a server what it is.

    Raises:
        InputError: It runs without the endpoints through which weights are sent.
    """
    try:
        config = call(url, "/server_info?config_format=json", timeout_seconds=timeout_seconds)["vllm_config"]
        call(url, "/weight_info", timeout_seconds=timeout_seconds)
    except Refused as error:
        why = f"it does not have what weights are sent through ({error})"
        raise InputError(
            f"rollout.urls={url}", why, "Start vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1 in its environment"
        ) from error
    served = call(url, "/v1/models", timeout_seconds=timeout_seconds)["data"]
    base = next(model for model in served if not model["parent"])
    extension = config["parallel_config"].get("worker_extension_cls") or ""
    mode = config["model_config"]["logprobs_mode"]
    return Facts(base["id"], base["max_model_len"], mode, "PackTiedHead" in extension)


def probe(url: str, model: str, tokens: Sequence[int], *, timeout_seconds: float) -> list[float]:
    """Log-probabilities at temperature 1 of each token but the first, given those before it."""
    body = {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    choice = call(url, "/v1/completions", body, timeout_seconds=timeout_seconds)["choices"][0]
    places = zip(choice["prompt_logprobs"][1:], tokens[1:], strict=True)
    return [place[str(token)]["logprob"] for place, token in places]
