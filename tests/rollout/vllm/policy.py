"""The embedded model as the trainer sees it, and settings, for the tests of vLLM servers."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import alignlab
from alignlab.rollout.sampler.sampling import SamplingSettings
from alignlab.rollout.vllm.settings import VLLMSettings
from alignlab.rollout.vllm.weights import Probe

POCKET = Path(alignlab.__file__).parent / "assets" / "pocket"
PROBE_TOKENS = [(97 * place + 5) % 384 for place in range(24)]
STOP = 1


def load():
    return AutoModelForCausalLM.from_pretrained(POCKET).eval()


@torch.no_grad()
def token_logps(model, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> Tensor:
    """The slow reference: one whole forward, float32."""
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0] / temperature
    return logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(tokens)[:, None])[:, 0]


def probe_of(model) -> Probe:
    return Probe(PROBE_TOKENS, token_logps(model, PROBE_TOKENS[:1], PROBE_TOKENS[1:]).tolist())


@torch.no_grad()
def disturb(model, scale: float, pattern: str = "") -> None:
    for name, parameter in model.named_parameters():
        if pattern in name:
            parameter.add_(scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))


def sampling(**changes) -> SamplingSettings:
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
    limits = {"max_completion_tokens": 48, "stop_tokens": [STOP], "stop_strings": []}
    return SamplingSettings(**{**given, **limits, **changes})


def seeds_of(seed: int, prompts) -> list[int]:
    """A server counts up from a prompt's seed, so neighbouring ones would repeat one another's draws."""
    return [(seed * len(prompts) + place) * 1_000_003 for place in range(len(prompts))]


def server_settings(**changes) -> VLLMSettings:
    given = {
        "vllm_executable": "no/python",
        "urls": None,
        "num_servers": 1,
        "devices": None,
        "dtype": "float32",
        "max_tokens_per_sequence": 256,
        "enforce_eager": True,
        "gpu_memory_fraction": 0.4,
        "cpu_cache_gib": 1,
        "environment": {},
        "arguments": [],
        "batch_size": 32,
        "weights_dir": "/dev/shm",
        "timeout_seconds": 240.0,
        "num_restarts": 0,
        "arrival_tolerance": 1e-3,
    }
    return VLLMSettings(**{**given, **changes})
