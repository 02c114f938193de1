"""Activations of the decoder in host memory: copied there in the forward pass, and back when the backward needs them.

With gradient checkpointing these are the inputs of the blocks, else everything that the decoder keeps for the backward.
Weights stay where they are. What is computed does not change.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

MIN_BYTES = 1024
"""Smaller tensors are not worth a copy."""


class Offloaded(NamedTuple):
    """A tensor in host memory, and the device to which it belongs."""

    host: Tensor
    device: torch.device


def offload_activations(model: PreTrainedModel) -> None:
    """Keep the activations of a model's decoder in host memory between forward and backward, from now on.

    Args:
        model: Changed in place.
    """
    entered: list[saved_tensors_hooks] = []

    def enter(decoder: nn.Module, *_: Any) -> None:
        weights = {_local(weight).untyped_storage().data_ptr() for weight in decoder.parameters()}
        entered.append(saved_tensors_hooks(lambda tensor: _to_host(tensor, weights), _from_host))
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__()

    model.get_decoder().register_forward_pre_hook(enter)
    model.get_decoder().register_forward_hook(leave, always_call=True)


def _local(weight: Tensor) -> Tensor:
    """A weight, or this rank's shard of it."""
    return getattr(weight, "_local_tensor", weight)


def _to_host(tensor: Tensor, weights: set[int]) -> Tensor | Offloaded:
    is_weight = isinstance(tensor, nn.Parameter) or _local(tensor).untyped_storage().data_ptr() in weights
    if is_weight or tensor.nbytes < MIN_BYTES:
        return tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return Offloaded(host.copy_(tensor, non_blocking=False), tensor.device)


def _from_host(kept: Tensor | Offloaded) -> Tensor:
    return kept.host.to(kept.device, non_blocking=True) if isinstance(kept, Offloaded) else kept
