"""The weights of the policy for a separate engine: gathered from all ranks, and written by one.

If the policy has an adapter, only the adapter is sent. The engine loads the initial weights from the folder or hub
repository that the policy was loaded from. Only random and quantised weights are written, the latter dequantised.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignlab.distributed.strategies import Sharding
from alignlab.types.adapted import base_model, is_adapted

Write = Callable[[Path], None]
"""Writes weights into a folder."""


def current_weights(policy: nn.Module, sharding: Sharding) -> Write:
    """Gather the current weights of the policy, or of its adapter. All ranks must call this; one calls the result.

    Args:
        policy: With or without an adapter.
        sharding: How its weights are sharded.
    """
    if not is_adapted(policy):
        weights = sharding.full_state_dict(policy)
        return lambda folder: policy.save_pretrained(folder, state_dict=weights)
    adapter = {name: sharding.value(tensor).cpu() for name, tensor in policy.named_parameters() if tensor.requires_grad}
    options = {"save_embedding_layers": False, "selected_adapters": [policy.active_adapter]}
    return lambda folder: policy.save_pretrained(folder, state_dict=adapter, **options)


def initial_weights(policy: nn.Module, sharding: Sharding, tokenizer: PreTrainedTokenizerBase) -> str | Write:
    """The weights that an engine starts with, without adapter: a folder, or a function that writes one.

    All ranks must call this; one calls the result.

    Args:
        policy: With or without an adapter.
        sharding: How its weights are sharded.
        tokenizer: Tokenizer, saved with the weights.
    """
    base = base_model(policy)
    is_quantised = getattr(base.config, "quantization_config", None) is not None
    if base.name_or_path and not is_quantised:
        return _folder(base)
    if is_quantised:
        weights = dequantised_weights(policy, sharding)
    else:
        weights = sharding.full_state_dict(policy) or base.state_dict()

    def write(folder: Path) -> None:
        _empty_like(base).save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)

    return write


def _folder(model: nn.Module) -> str:
    """Folder that a model was loaded from; for the hub, the cached snapshot of its revision."""
    commit = getattr(model.config, "_commit_hash", None)
    name = model.name_or_path
    return snapshot_download(name, revision=commit, local_files_only=True) if commit else name


def dequantised_weights(policy: nn.Module, sharding: Sharding) -> dict[str, Tensor]:
    """The dequantised weights without adapter, by their names without adapter."""
    base, weights = base_model(policy), {}
    for name, tensor in base.named_parameters(remove_duplicate=False):
        if tensor.requires_grad or ".lora_" in name:
            continue
        module = base.get_submodule(name.rpartition(".")[0])
        weights[name.replace(".base_layer.", ".")] = _dequantised(sharding.value(tensor), module, tensor).cpu()
    return weights


def _dequantised(value: Tensor, module: nn.Module, parameter: Tensor) -> Tensor:
    """Dequantise a tensor of bitsandbytes; return any other tensor as it is."""
    state = getattr(module, "quant_state", None) or getattr(parameter, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(value, state)
    if value.dtype == torch.int8:
        scale = getattr(getattr(module, "state", None), "SCB", None)
        scale = getattr(parameter, "SCB", None) if scale is None else scale
        return value * scale.to(value.device)[:, None] / 127
    return value


def _empty_like(model: nn.Module) -> nn.Module:
    """A model of the same architecture on the meta device, without adapter or quantisation, to save weights with."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        empty = type(model)(config)
    empty.generation_config = model.generation_config
    return empty
