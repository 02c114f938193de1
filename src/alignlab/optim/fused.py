"""PyTorch's fused Adam and AdamW, chosen where all weights lie on GPUs or all on the CPU."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., torch.optim.Optimizer]

FUSED = (torch.optim.Adam, torch.optim.AdamW)
"""Others have fused steps too, but these do not work on the shards of FSDP2, and that of SGD with momentum is wrong in
bfloat16 on a CPU (PyTorch 2.13)."""

DEVICES = ({"cpu"}, {"cuda"})


def make_fused(make: Make, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make an optimizer, fused if PyTorch has one of its kind for these weights and the user has not chosen.

    A fused optimizer reads and writes every number once; otherwise PyTorch makes temporary copies of all weights. On a
    CPU it takes a quarter of the time.

    Args:
        make: Parameter groups → optimizer.
        groups: Parameter groups.
    """
    options = inspect.signature(make).parameters
    chosen = any(options[name].default is not None for name in ("fused", "foreach") if name in options)
    devices = {weight.device.type for group in groups for weight in group["params"]}
    fuses = getattr(make, "func", make) in FUSED and devices in DEVICES and not chosen
    return make(groups, fused=True) if fuses else make(groups)
