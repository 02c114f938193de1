"""Attention over the packed layout, plugged into Transformers through its attention and mask registries.

The layout travels as the keyword ``layout`` of the model's forward and reaches every layer unchanged. Each bucket is
computed by the attention function that Transformers itself would use: ``sdpa``, or the model's own eager function,
which honours whatever the architecture asks for beyond causality (soft-capping, sinks, position biases). Without the
keyword (generation, the padded layout) the registered names behave exactly like their namesakes.
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
"""What is typed as ``model.attn_implementation``, and the name under which Transformers finds it."""

# Keywords by which a layer asks for more than scaled dot products; sdpa cannot honour them, the model's own can.
EAGER_ONLY = ("softcap", "s_aux", "position_bias")

# A 4D mask is taken by Transformers as already prepared, so none is built over T x T; the layout replaces it.
NO_MASK = (1, 1, 0, 0)


def implementation(name: str) -> str:
    """The registered name for what the user typed.

    Raises:
        InputError: The name is not one that can isolate the trees of a flat batch.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(
            f"model.attn_implementation={name}",
            "this attention is not known to keep the documents of a flat batch apart",
            f"{nearest(name, IMPLEMENTATIONS)} Type one of: {', '.join(IMPLEMENTATIONS)}",
        )
    return IMPLEMENTATIONS[name]


def fitting(registered: str, config: PreTrainedConfig) -> str:
    """The registered name, or for an architecture with attention code of its own the nearest that it has.

    Args:
        registered: A name that ``implementation`` gave.
        config: Of the model that is to be made.
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
    """Attend bucket by bucket and put the outputs back in flat order.

    Args:
        module: The attention layer; the inner function reads its settings.
        query: Shape ``[1, heads, T, d]``.
        key: Shape ``[1, key-value heads, T, d]``.
        value: Shape ``[1, key-value heads, T, d]``.
        layout: Layout of the T tokens.
        inner: Attention function of Transformers, called once per bucket.
        sliding_window: Path positions each query sees, itself included; ``None`` for all.
        options: Passed on (``dropout``, ``scaling``, ``softcap``, …).

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
    """``[1, heads, T, d]`` gathered by ``[b, L]`` into ``[b, heads, L, d]``."""
    return states[0].transpose(0, 1)[index].transpose(1, 2)


def _eager(module, query, key, value, attention_mask, **options):
    """The eager function of the file that defines the layer; it adds a float mask and has no causal flag."""
    if attention_mask is None:
        shape = (query.shape[2], key.shape[2])
        attention_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril(shape[1] - shape[0])[None, None]
    if attention_mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
    own = sys.modules[type(module).__module__].eager_attention_forward
    return own(module, query, key, value, attention_mask, **options)


def _fastest(module, *states, **options):
    asks_more = any(options.get(name) is not None for name in EAGER_ONLY)
    return (_eager if asks_more else sdpa_attention_forward)(module, *states, **options)


def _with_layout(inner: Callable) -> Callable:
    """An attention function of Transformers that also understands the keyword ``layout``."""

    def attend(module, query, key, value, attention_mask, *, layout=None, sliding_window=None, **options):
        if layout is None:
            return inner(module, query, key, value, attention_mask, **options)
        return packed_attention(module, query, key, value, layout, inner, sliding_window, **options), None

    return attend


AttentionInterface.register("packed", _with_layout(_fastest))
AttentionInterface.register("packed_eager", _with_layout(_eager))
AttentionMaskInterface.register("packed", sdpa_mask)
AttentionMaskInterface.register("packed_eager", eager_mask)
