"""PyTorch's fused optimizers, chosen where all weights lie on a GPU."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

Make = Callable[..., torch.optim.Optimizer]


def make_fused(make: Make, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make an optimizer, fused if PyTorch has one of its kind for these weights and the user has not chosen.

    A fused optimizer reads and writes every number once; otherwise PyTorch makes temporary copies of all weights.

    Args:
        make: Parameter groups → optimizer.
        groups: Parameter groups.
    """
    option = inspect.signature(make).parameters.get("fused")
    on_gpu = all(weight.is_cuda for group in groups for weight in group["params"])
    if option is not None and option.default is None and on_gpu:
        return make(groups, fused=True)
    return make(groups)
