"""Settings of vLLM servers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(kw_only=True, eq=False)
class VLLMSettings:
    """Settings of vLLM servers, started by the run or external.

    Args:
        vllm_executable: Python of an environment with vLLM; not used with ``urls``.
        urls: External servers, ``http://host:port``; ``None`` starts ``num_servers`` on this machine.
        num_servers: Number of servers to start; prompts are distributed among them.
        devices: GPUs of each started server, such as ``"2,3"``; ``None`` for all visible GPUs.
        dtype: Dtype of the servers' weights and computation.
        max_tokens_per_sequence: Maximum number of tokens of prompt and completion; ``None`` for the model's limit.
        enforce_eager: Whether to skip compilation and CUDA graphs: faster start, slower sampling.
        gpu_memory_fraction: Fraction of a GPU's memory for weights and cache.
        cpu_cache_gib: Main memory for the key-value cache without a GPU, in GiB.
        environment: Further environment variables of started servers.
        arguments: Further command-line arguments of started servers.
        batch_size: Maximum number of completions in progress on all servers.
        weights_dir: Folder for weight updates, visible to this process and all servers; only the last one is kept.
        timeout_seconds: Timeout of a server's start, restart and responses.
        num_restarts: Number of times that a started server is restarted after it has died.
        arrival_tolerance: Maximum mean difference of the probe's log-probs after an update, in nats per token.
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
