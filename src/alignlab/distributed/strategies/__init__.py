"""Training strategies: the names of ``strategy=`` and the functions that make Lightning's strategies."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.strategies import Strategy

from alignlab.distributed.strategies.base import Sharding, full_shape, num_parameters, sharding_of
from alignlab.distributed.strategies.ddp import ddp, single
from alignlab.distributed.strategies.fsdp import fsdp
from alignlab.distributed.strategies.zero import (
    deepspeed_z1,
    deepspeed_z2,
    deepspeed_z2_offload,
    deepspeed_z3,
    deepspeed_z3_nvme,
    deepspeed_z3_offload,
)
from alignlab.errors import InputError, nearest

STRATEGIES: dict[str, Callable[..., Strategy | str]] = {
    "single": single,
    "ddp": ddp,
    "fsdp": fsdp,
    "deepspeed_z1": deepspeed_z1,
    "deepspeed_z2": deepspeed_z2,
    "deepspeed_z3": deepspeed_z3,
    "deepspeed_z2_offload": deepspeed_z2_offload,
    "deepspeed_z3_offload": deepspeed_z3_offload,
    "deepspeed_z3_nvme": deepspeed_z3_nvme,
}


def make_strategy(name: str, **options: Any) -> Strategy | str:
    """Make a strategy by name.

    Args:
        name: A name of ``STRATEGIES``, as in ``strategy=``.
        options: Keyword arguments of its function.

    Raises:
        InputError: There is no such strategy.
    """
    if name not in STRATEGIES:
        raise InputError(f"strategy={name}", "there is no such strategy", nearest(name, STRATEGIES))
    return STRATEGIES[name](**options)


__all__ = ["STRATEGIES", "Sharding", "full_shape", "make_strategy", "num_parameters", "sharding_of"]
