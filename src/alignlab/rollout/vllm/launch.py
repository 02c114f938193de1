"""Command line, environment and port of the vLLM servers that a run starts."""

import os
import socket
from pathlib import Path

import torch

from alignlab.errors import InputError
from alignlab.rollout.vllm.server import Server
from alignlab.rollout.vllm.settings import VLLMSettings

MODULE = "vllm.entrypoints.openai.api_server"  # `vllm serve` does the same, but needs a package named vllm
EXTENSION = Path(__file__).parent / "extension"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# Variables that launchers set for training processes, and that would misconfigure a server.
NOT_INHERITED = ("RANK", "LOCAL_", "WORLD_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "PYTHONPATH", "OMP_")


def servers(
    settings: VLLMSettings, *, model: str | Path, mode: str, lora_rank: int | None, log_dir: Path
) -> list[Server]:
    """Make the servers of a run, without starting them.

    Args:
        settings: Settings of the servers.
        model: Folder of the initial weights, without adapter.
        mode: The ``--logprobs-mode``, from ``completions.logprobs_mode``.
        lora_rank: Rank of the adapter that will be sent; ``None`` for full weights.
        log_dir: Folder for their logs.

    Raises:
        InputError: ``vllm_executable`` does not exist, ``devices`` does not have one entry per server, or the LoRA rank
            is too large.
    """
    if settings.urls is not None:
        return [Server(url) for url in settings.urls]
    if not os.access(settings.vllm_executable, os.X_OK):
        raise InputError(
            f"rollout.vllm_executable={settings.vllm_executable}",
            "there is no such program",
            "Type make vllm, or name the Python of an environment with vLLM, or give rollout.urls",
        )
    devices = settings.devices or [None] * settings.num_servers
    if len(devices) != settings.num_servers:
        asked = f"rollout.devices={list(devices)} with rollout.num_servers={settings.num_servers}"
        raise InputError(asked, "each server needs an entry of its own", f"Type rollout.num_servers={len(devices)}")
    made = []
    for number, device in enumerate(devices):
        port = _free_port()
        command = command_line(settings, model=model, mode=mode, lora_rank=lora_rank, port=port)
        log_file = log_dir / f"vllm_{number}.log"
        environment = _environment(settings, device)
        made.append(Server(f"http://127.0.0.1:{port}", command, environment, log_file, settings.num_restarts))
    return made


def command_line(
    settings: VLLMSettings, *, model: str | Path, mode: str, lora_rank: int | None, port: int
) -> list[str]:
    """The command line of a server."""
    options = {
        "model": model,
        "served-model-name": "policy",
        "host": "127.0.0.1",
        "port": port,
        "dtype": settings.dtype,
        "logprobs-mode": mode,
        "generation-config": "vllm",  # no sampling defaults of the model
        "worker-extension-cls": "alignlab_worker.PackTiedHead",
    }
    if settings.max_tokens_per_sequence is not None:
        options["max-model-len"] = settings.max_tokens_per_sequence
    if torch.cuda.is_available():
        options["gpu-memory-utilization"] = settings.gpu_memory_fraction
    flags = ["--disable-uvicorn-access-log", *["--enforce-eager"] * settings.enforce_eager, *device_flags()]
    if lora_rank is not None:
        flags.append("--enable-lora")
        options |= {"max-lora-rank": _allowed_rank(lora_rank), "max-loras": 1, "max-cpu-loras": 1}
    pairs = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [settings.vllm_executable, "-m", MODULE, *pairs, *flags, *settings.arguments]


def _allowed_rank(rank: int) -> int:
    if rank > LORA_RANKS[-1]:
        raise InputError(f"peft.r={rank}", f"vLLM supports ranks up to {LORA_RANKS[-1]}", "Type a smaller one")
    return next(allowed for allowed in LORA_RANKS if allowed >= rank)


def environment_of(executable: str, cpu_cache_gib: int) -> dict[str, str]:
    """The environment of a server's process: that of this one without what launchers set for training.

    Args:
        executable: Python of an environment with vLLM.
        cpu_cache_gib: Main memory for the key-value cache without a GPU, in GiB.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    path = f"{Path(executable).absolute().parent}:{os.environ.get('PATH', '')}"
    own = {"PATH": path, "VLLM_NO_USAGE_STATS": "1"}
    if not torch.cuda.is_available():
        own |= {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": str(cpu_cache_gib)}
    return inherited | own


def device_flags() -> list[str]:
    """Arguments of a server that the device needs."""
    # vLLM 0.32 crashes on seeded prompts in chunks: it rewinds the generator, which CPU generators do not support.
    return [] if torch.cuda.is_available() else ["--no-enable-chunked-prefill"]


def _environment(settings: VLLMSettings, device: str | None) -> dict[str, str]:
    own = {
        "PYTHONPATH": str(EXTENSION),
        "VLLM_SERVER_DEV_MODE": "1",  # enables the endpoints for weight updates
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    if device is not None:
        own["CUDA_VISIBLE_DEVICES"] = device
    return environment_of(settings.vllm_executable, settings.cpu_cache_gib) | own | dict(settings.environment)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
