"""NEFTune: uniform noise on the embeddings in training (Jain et al. 2023, arXiv 2310.05914).

1. In the flat layout, the length L that scales the noise is that of a token's own document, not of the whole sequence,
   so that packing does not change the scale.
"""

from typing import Any

import torch
from torch import Tensor, nn

from alignlab.types.adapted import base_model


def add_embedding_noise(model: nn.Module, alpha: float) -> None:
    """Register hooks that add noise of magnitude ``alpha / sqrt(L · d)`` to the embeddings in train mode.

    Args:
        model: A causal language model of Transformers, with or without an adapter.
        alpha: Scale; 0 leaves the model untouched.
    """
    if alpha == 0:
        return
    lengths: dict[str, Tensor] = {}

    def remember(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if module.training:
            lengths["current"] = document_lengths(kwargs)

    def perturb(module: nn.Module, args: tuple, embeddings: Tensor) -> Tensor:
        if not module.training:
            return embeddings
        magnitude = alpha / (lengths["current"].to(embeddings.dtype) * embeddings.shape[-1]).sqrt()
        return embeddings + torch.empty_like(embeddings).uniform_(-1, 1) * magnitude[..., None]

    base = base_model(model)
    base.get_decoder().register_forward_pre_hook(remember, with_kwargs=True)
    base.get_input_embeddings().register_forward_hook(perturb)


def document_lengths(inputs: dict[str, Any]) -> Tensor:
    """Number of tokens of the document or padded row that each position belongs to.

    Args:
        inputs: Keyword arguments of the decoder, with ``position_ids [B, T]``, and for padded rows a 2D
            ``attention_mask``.

    Returns:
        Shape ``[B, T]``.
    """
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        own = mask[:, -inputs["position_ids"].shape[1] :]  # without the positions of a trained prefix
        return own.sum(1, keepdim=True).expand(own.shape)
    positions = inputs["position_ids"]
    document = (positions == 0).flatten().cumsum(0) - 1
    return torch.bincount(document)[document].view(positions.shape)
