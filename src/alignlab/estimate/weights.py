"""Sizes of a model's weights, read from a model without data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from alignlab.types.adapted import base_model, decoder_blocks

QUANTISATION_BLOCK, SCALE_BLOCK = 64, 256
"""Numbers with a common scale in bitsandbytes' 4-bit formats, and scales with a common scale (arXiv 2305.14314)."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Sizes of a model, all of it, in numbers and bytes.

    Args:
        numbers: Number of weights.
        num_bytes: Their bytes as they are stored, quantised or not.
        trained: Number of weights that are trained.
        trained_bytes: Bytes of these.
        largest_trained: Number of weights of the largest trained tensor.
        multiplied: Number of weights that each token is multiplied with: without embedding and head, and of experts
            only those that a token is sent to.
        head: Number of weights of the head.
        block_bytes: Bytes of the largest block of the decoder.
        root_bytes: Bytes of the weights outside the blocks.
        largest_quantised: Number of weights of the largest quantised matrix; 0 without.
        hidden_size: Width of the hidden states.
        num_blocks: Blocks of the decoder.
        cached_numbers: Numbers in the key-value cache per token.
        vocabulary_size: Rows of the head.
    """

    numbers: int
    num_bytes: int
    trained: int
    trained_bytes: int
    largest_trained: int
    multiplied: int
    head: int
    block_bytes: int
    root_bytes: int
    largest_quantised: int
    hidden_size: int
    num_blocks: int
    cached_numbers: int
    vocabulary_size: int


def weights_of(model: nn.Module, quantization: Mapping[str, Any] | None, narrow: torch.dtype | None) -> Weights:
    """Sizes of a model.

    Args:
        model: Without data, with its adapter.
        quantization: Settings of bitsandbytes; ``None`` for none.
        narrow: Dtype that an engine casts all weights to; ``None`` for their own.
    """
    quantised = _quantised(model) if quantization else set()

    def size(parameter: nn.Parameter) -> float:
        if id(parameter) in quantised:
            return parameter.numel() * _quantised_itemsize(quantization)
        return parameter.numel() * (narrow.itemsize if narrow else parameter.dtype.itemsize)

    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    blocks = decoder_blocks(model)
    in_blocks = [sum(map(size, block.parameters())) for block in blocks]
    total = sum(map(size, parameters))
    config = base_model(model).config.get_text_config()
    return Weights(
        numbers=sum(parameter.numel() for parameter in parameters),
        num_bytes=int(total),
        trained=sum(parameter.numel() for parameter in trained),
        trained_bytes=int(sum(map(size, trained))),
        largest_trained=max((parameter.numel() for parameter in trained), default=0),
        multiplied=int(sum(_multiplied(model, config))),
        head=_head(model),
        block_bytes=int(max(in_blocks, default=0)),
        root_bytes=int(total - sum(in_blocks)),
        largest_quantised=max((p.numel() for p in parameters if id(p) in quantised), default=0),
        hidden_size=config.hidden_size,
        num_blocks=config.num_hidden_layers,
        cached_numbers=_cached_numbers(config),
        vocabulary_size=config.vocab_size,
    )


def _quantised(model: nn.Module) -> set[int]:
    """Ids of the weights that bitsandbytes replaces: of frozen linear layers, without the head."""
    head = base_model(model).get_output_embeddings()
    layers = (module for module in model.modules() if isinstance(module, nn.Linear) and module is not head)
    return {id(layer.weight) for layer in layers if not layer.weight.requires_grad}


def _quantised_itemsize(quantization: Mapping[str, Any]) -> float:
    """Bytes per weight: with scales in float32, or in 8 bits with float32 scales of their own (arXiv 2305.14314)."""
    if quantization.get("load_in_8bit"):
        return 1.0
    if quantization.get("bnb_4bit_use_double_quant"):
        return 0.5 + (1 + 4 / SCALE_BLOCK) / QUANTISATION_BLOCK
    return 0.5 + 4 / QUANTISATION_BLOCK


def _multiplied(model: nn.Module, config: Any) -> list[float]:
    """Number of weights in the products of one token, matrix by matrix; tensors of experts have three axes."""
    base = base_model(model)
    outside = {id(part.weight) for part in (base.get_input_embeddings(), base.get_output_embeddings()) if part}
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    share = (getattr(config, "num_experts_per_tok", None) or 1) / experts if experts else 1.0
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1 and id(parameter) not in outside]
    return [parameter.numel() * (share if parameter.ndim > 2 else 1.0) for parameter in matrices]


def _head(model: nn.Module) -> int:
    head = base_model(model).get_output_embeddings()
    return head.weight.numel() if head is not None else 0


def _cached_numbers(config: Any) -> int:
    """Keys and values of one token in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size
