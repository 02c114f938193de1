"""The policy's weights as another engine takes them: gathered from all ranks, written by one.

Of an adapter only the adapter travels. The weights under it, and what an engine is to start with, are read from where
they came from, unless they exist nowhere as the policy has them: random weights, and quantised ones, which are written
as the numbers that the policy computes with.
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
    """The policy as it is now, or only its adapter; every rank asks, one writes.

    Args:
        policy: With or without an adapter.
        sharding: How it is spread.
    """
    if not is_adapted(policy):
        weights = sharding.full_state_dict(policy)
        return lambda folder: policy.save_pretrained(folder, state_dict=weights)
    adapter = {name: sharding.value(tensor).cpu() for name, tensor in policy.named_parameters() if tensor.requires_grad}
    options = {"save_embedding_layers": False, "selected_adapters": [policy.active_adapter]}
    return lambda folder: policy.save_pretrained(folder, state_dict=adapter, **options)


def first_weights(policy: nn.Module, sharding: Sharding, tokenizer: PreTrainedTokenizerBase) -> str | Write:
    """What an engine starts with, the weights under an adapter where there is one: a folder, or what writes it.

    Every rank asks, one writes.

    Args:
        policy: With or without an adapter.
        sharding: How it is spread.
        tokenizer: Written beside weights.
    """
    base = base_model(policy)
    is_quantised = getattr(base.config, "quantization_config", None) is not None
    if base.name_or_path and not is_quantised:
        return _folder(base)
    weights = plain_weights(policy, sharding) if is_quantised else sharding.full_state_dict(policy) or base.state_dict()

    def write(folder: Path) -> None:
        _empty_like(base).save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)

    return write


def _folder(model: nn.Module) -> str:
    """Where a model was read from; of a hub the revision that was."""
    commit = getattr(model.config, "_commit_hash", None)
    name = model.name_or_path
    return snapshot_download(name, revision=commit, local_files_only=True) if commit else name


def plain_weights(policy: nn.Module, sharding: Sharding) -> dict[str, Tensor]:
    """The weights under an adapter by their names without it, quantised ones as the numbers they stand for."""
    base, weights = base_model(policy), {}
    for name, tensor in base.named_parameters(remove_duplicate=False):
        if tensor.requires_grad or ".lora_" in name:
            continue
        owner = base.get_submodule(name.rpartition(".")[0])
        weights[name.replace(".base_layer.", ".")] = _plain(sharding.value(tensor), owner, tensor).cpu()
    return weights


def _plain(value: Tensor, owner: nn.Module, parameter: Tensor) -> Tensor:
    """A tensor of bitsandbytes as the numbers it stands for, any other as it is."""
    state = getattr(owner, "quant_state", None) or getattr(parameter, "quant_state", None)
    if state is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(value, state)
    if value.dtype == torch.int8:
        scale = getattr(getattr(owner, "state", None), "SCB", None)
        scale = getattr(parameter, "SCB", None) if scale is None else scale
        return value * scale.to(value.device)[:, None] / 127
    return value


def _empty_like(model: nn.Module) -> nn.Module:
    """A model of the same architecture without adapter, quantisation and storage, which knows how to write weights."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        empty = type(model)(config)
    empty.generation_config = model.generation_config
    return empty
