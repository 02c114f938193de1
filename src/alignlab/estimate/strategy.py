"""What a strategy divides among ranks, and the buffers that it needs for that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

DEFAULT_BUCKET, DEFAULT_SUB_GROUP, DEFAULT_LIVE = 500_000_000, 1_000_000_000, 1_000_000_000
"""DeepSpeed's defaults: numbers in a bucket of gradients, in a step of the optimizer, and gathered at once."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """How a strategy divides the state of training among ranks.

    Args:
        engine: ``single``; ``ddp``: copies; ``fsdp``: PyTorch's FSDP2; ``zero``: DeepSpeed.
        stage: Stage of ZeRO: 1 divides the optimizer state, 2 also gradients, 3 also weights; 0 divides nothing.
        offloads_optimizer: Whether the optimizer state is in host memory.
        offloads_weights: Whether the weights are in host memory too.
        bucket: Numbers in the buffer of gradients to send.
        sub_group: Numbers that the optimizer updates at a time.
        live: Most numbers of weights that are gathered at a time.
    """

    engine: Literal["single", "ddp", "fsdp", "zero"]
    stage: int
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    bucket: int = DEFAULT_BUCKET
    sub_group: int = DEFAULT_SUB_GROUP
    live: int = DEFAULT_LIVE

    @property
    def divides_weights(self) -> bool:
        """Whether each rank holds a shard of the weights only."""
        return self.stage == 3


def division_of(strategy: Mapping[str, Any]) -> Division:
    """The division of a node ``strategy``. A strategy of another package is taken to copy everything.

    Args:
        strategy: Node with ``_target_``.
    """
    name = str(strategy["_target_"]).rpartition(".")[2].lower()
    zero = (strategy.get("config") or {}).get("zero_optimization")
    if zero is not None:
        offloads = {key: (zero.get(key) or {}).get("device") in ("cpu", "nvme") for key in OFFLOADS}
        return Division(
            engine="zero",
            stage=zero.get("stage", 1),
            offloads_optimizer=offloads["offload_optimizer"],
            offloads_weights=offloads["offload_param"],
            bucket=int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)),
            sub_group=int(zero.get("sub_group_size", DEFAULT_SUB_GROUP)),
            live=int(zero.get("stage3_max_live_parameters", DEFAULT_LIVE)),
        )
    if name == "fsdp":
        offload = bool(strategy.get("cpu_offload"))
        return Division(engine="fsdp", stage=3, offloads_optimizer=offload, offloads_weights=offload)
    return Division(engine="single" if name == "single" else "ddp", stage=0)


OFFLOADS = ("offload_optimizer", "offload_param")
