"""Attention over the packed layout, registered with Transformers' attention and mask interfaces.

The layout is passed as the keyword ``layout`` of the model's forward and reaches every layer unchanged. Each bucket is
computed by the attention function that Transformers itself would use: ``sdpa``, or the model's own eager function,
which supports the architecture's additions to causal attention (soft-capping, sinks, position biases). Without the
keyword (generation, the padded layout), ``packed`` behaves like ``sdpa`` and ``packed_eager`` like ``eager``.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from alignlab.errors import InputError, nearest
from alignlab.types.layout import PackedLayout

IMPLEMENTATIONS = {"auto": "packed", "sdpa": "packed", "eager": "packed_eager"}
"""Names for ``model.attn_implementation``, and the names under which they are registered with Transformers."""

# Keywords that extend scaled dot products: sdpa does not support them, the model's own eager function does.
EAGER_ONLY = ("softcap", "s_aux", "position_bias")

# Transformers takes a 4D mask as prepared and builds none of T x T; the layout replaces it.
NO_MASK = (1, 1, 0, 0)


def implementation(name: str) -> str:
    """The registered name of what the user typed.

    Raises:
        InputError: This attention cannot separate the groups of a flat batch.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(
            f"model.attn_implementation={name}",
            "this attention is not known to keep the documents of a flat batch separate",
            f"{nearest(name, IMPLEMENTATIONS)} Type one of: {', '.join(IMPLEMENTATIONS)}",
        )
    return IMPLEMENTATIONS[name]


def fitting(registered: str, config: PreTrainedConfig) -> str:
    """The registered name, or the closest supported one for an architecture that does not use the attention registry.

    Args:
        registered: A name from ``implementation``.
        config: Config of the model to build.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None or kind._supports_attention_backend:
        return registered
    return "sdpa" if registered == "packed" and kind._supports_sdpa else "eager"


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    inner: Callable,
    sliding_window: int | None,
    **options,
) -> Tensor:
    """Compute attention bucket by bucket and restore the flat order of the outputs.

    Args:
        module: The attention layer; the inner function reads its settings.
        query: Shape ``[1, heads, T, d]``.
        key: Shape ``[1, key-value heads, T, d]``.
        value: Shape ``[1, key-value heads, T, d]``.
        layout: Layout of the T tokens.
        inner: Attention function of Transformers, called once per bucket.
        sliding_window: Path positions that each query attends to, including its own; ``None`` for all.
        options: Passed to ``inner`` (``dropout``, ``scaling``, ``softcap``, …).

    Returns:
        Shape ``[1, T, heads, d]``.
    """
    layout.windows.add(sliding_window)
    window = sliding_window if sliding_window is not None and sliding_window < layout.longest_path else None
    outputs = []
    for bucket in layout.buckets:
        mask = None if bucket.causal and window is None else bucket.mask(window)
        rows = (_rows(query, bucket.queries), _rows(key, bucket.keys), _rows(value, bucket.keys))
        output, _ = inner(module, *rows, mask, **options)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs)[layout.restore][None]


def _rows(states: Tensor, index: Tensor) -> Tensor:
    """Gather ``[1, heads, T, d]`` by indices ``[b, L]`` into ``[b, heads, L, d]``."""
    return states[0].transpose(0, 1)[index].transpose(1, 2)


def _eager(module, query, key, value, attention_mask, **options):
    """Call the eager function of the layer's own module, which adds a float mask and has no causal flag."""
    if attention_mask is None:
        shape = (query.shape[2], key.shape[2])
        attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril(shape[1] - shape[0])[None, None]
    if attention_mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
    own = sys.modules[type(module).__module__].eager_attention_forward
    return own(module, query, key, value, attention_mask, **options)


def _fastest(module, *states, **options):
    needs_eager = any(options.get(name) is not None for name in EAGER_ONLY)
    return (_eager if needs_eager else sdpa_attention_forward)(module, *states, **options)


def _with_layout(inner: Callable) -> Callable:
    """Extend an attention function of Transformers with the keyword ``layout``."""

    def attend(module, query, key, value, attention_mask, *, layout=None, sliding_window=None, **options):
        if layout is None:
            return inner(module, query, key, value, attention_mask, **options)
        return packed_attention(module, query, key, value, layout, inner, sliding_window, **options), None

    return attend


AttentionInterface.register("packed", _with_layout(_fastest))
AttentionInterface.register("packed_eager", _with_layout(_eager))
AttentionMaskInterface.register("packed", sdpa_mask)
AttentionMaskInterface.register("packed_eager", eager_mask)
