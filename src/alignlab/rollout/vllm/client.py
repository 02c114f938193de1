"""HTTP requests to a vLLM server: its configuration, and its log-probs of a probe."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from alignlab.errors import InputError

DIRECT = build_opener(ProxyHandler({}))
"""Opens URLs without a proxy, because servers are in the local network."""

MAX_DETAIL = 600


class Unreachable(RuntimeError):
    """A server did not answer or had an internal error; it may recover."""


class Refused(RuntimeError):
    """A server refused a request."""


@dataclass(frozen=True)
class ServerInfo:
    """Configuration of a server.

    Args:
        model: Name of its base weights in requests.
        context: Maximum number of tokens of a prompt with its completion.
        logprobs_mode: Distribution of its log-probs; see ``completions.logprobs_mode``.
        packs_tied_head: Whether its workers have ``extension.alignlab_worker.PackTiedHead``.
    """

    model: str
    context: int
    logprobs_mode: str
    packs_tied_head: bool


def call(url: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float) -> Any:
    """Send a request: a GET without ``body``, otherwise a POST with it as JSON.

    Returns:
        The response as parsed JSON, or as text if it is not JSON.

    Raises:
        Unreachable: No response, or a server error (status 500 and above).
        Refused: Any other status that is not a success.
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


def server_info(url: str, *, timeout_seconds: float) -> ServerInfo:
    """Get the configuration of a server.

    Raises:
        InputError: It runs without the endpoints for weight updates.
    """
    try:
        config = call(url, "/server_info?config_format=json", timeout_seconds=timeout_seconds)["vllm_config"]
        call(url, "/weight_info", timeout_seconds=timeout_seconds)
    except Refused as error:
        why = f"it does not have the endpoints for weight updates ({error})"
        raise InputError(
            f"rollout.urls={url}", why, "Start vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1 in its environment"
        ) from error
    served = call(url, "/v1/models", timeout_seconds=timeout_seconds)["data"]
    base = next(model for model in served if not model["parent"])
    extension = config["parallel_config"].get("worker_extension_cls") or ""
    mode = config["model_config"]["logprobs_mode"]
    return ServerInfo(base["id"], base["max_model_len"], mode, "PackTiedHead" in extension)


def probe(url: str, model: str, tokens: Sequence[int], *, timeout_seconds: float) -> list[float]:
    """Log-probs at temperature 1 of each token but the first, given the tokens before it."""
    body = {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    choice = call(url, "/v1/completions", body, timeout_seconds=timeout_seconds)["choices"][0]
    pairs = zip(choice["prompt_logprobs"][1:], tokens[1:], strict=True)
    return [logprobs[str(token)]["logprob"] for logprobs, token in pairs]
