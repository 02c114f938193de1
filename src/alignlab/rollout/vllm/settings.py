"""What a user says about vLLM servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(kw_only=True, eq=False)
class VLLMSettings:
    """Servers to start or to use, and when to trust them.

    Args:
        vllm_executable: Python of the environment that has vLLM; unused with ``urls``.
        urls: Servers that run already, ``http://host:port``; ``None`` starts ``num_servers`` on this machine.
        num_servers: Servers to start; prompts are split among them.
        devices: Per started server its GPUs, ``"2,3"``; ``None`` leaves all visible.
        dtype: Number format of the servers' weights and computation.
        max_tokens_per_sequence: Longest prompt with completion; ``None`` takes what the model can.
        enforce_eager: Start sooner, sample slower: without compilation and captured graphs.
        gpu_memory_fraction: Share of a GPU's memory for weights and cache.
        cpu_cache_gib: Main memory for keys and values where there is no GPU.
        environment: Further environment variables of started servers.
        arguments: Further command-line arguments of started servers.
        batch_size: Completions that are with the servers at a time, all together.
        weights_dir: Folder that this process and all servers see; updates are written there, one kept at a time.
        timeout_seconds: Longest wait for a server's start, its return, or one answer.
        num_restarts: Times that a dead server of ours is started again.
        arrival_tolerance: Mean difference, in nats per token, that the probe may show after an update.
    """

    vllm_executable: str
    urls: Sequence[str] | None
    num_servers: Annotated[int, Field(ge=1)]
    devices: Sequence[str] | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    max_tokens_per_sequence: Annotated[int, Field(ge=2)] | None
    enforce_eager: bool
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)]
    cpu_cache_gib: Annotated[int, Field(ge=1)]
    environment: Mapping[str, str]
    arguments: Sequence[str]
    batch_size: Annotated[int, Field(ge=1)]
    weights_dir: str
    timeout_seconds: Annotated[float, Field(gt=0)]
    num_restarts: Annotated[int, Field(ge=0)]
    arrival_tolerance: Annotated[float, Field(gt=0)]
