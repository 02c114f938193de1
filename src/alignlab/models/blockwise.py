"""Run a model on a device that may have no room for its weights."""

import math

import torch
from torch import nn

from alignlab.types.adapted import decoder_blocks

ROOM = 0.9
"""Share of the free memory of a GPU that weights may take; the rest is for activations."""


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device; where it has no room, each decoder block is there only while it computes.

    Args:
        model: On the CPU; changed in place.
        device: Where it computes.
    """
    blocks = decoder_blocks(model)
    if not blocks or sum(parameter.nbytes for parameter in model.parameters()) <= ROOM * free_bytes(device):
        return model.to(device)
    for block in blocks:
        _visit(block, device)
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in (module for module in model.modules() if id(module) not in inside):
        for tensor in _tensors(module, recurse=False):
            tensor.data = tensor.data.to(device)
    return model


def free_bytes(device: torch.device) -> float:
    """Free memory of a GPU; without limit for a CPU, where the weights are already.

    Args:
        device: A device of this process.
    """
    if device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _visit(block: nn.Module, device: torch.device) -> None:
    """Bring the weights of a block to a device before its forward, and give the first ones back after it."""
    at_home = [(tensor, tensor.data) for tensor in _tensors(block, recurse=True)]

    def come(*_) -> None:
        for tensor, values in at_home:
            tensor.data = values.to(device)

    def leave(*_) -> None:
        for tensor, values in at_home:
            tensor.data = values

    block.register_forward_pre_hook(come)
    block.register_forward_hook(leave)


def _tensors(module: nn.Module, recurse: bool) -> list[torch.Tensor]:
    return [*module.parameters(recurse), *module.buffers(recurse)]
