"""Attention over the packed layout, registered with Transformers' attention and mask interfaces.

The layout is passed as the keyword ``layout`` of the model's forward and reaches every layer unchanged. Where they can,
kernels for segments of varying length compute it without padding (``flash_attention``). Otherwise each bucket is
computed by the attention function that Transformers itself would use: ``sdpa``, or the model's own eager function,
which supports the architecture's additions to causal attention (soft-capping, sinks, position biases). Without the
keyword (generation, the padded layout), ``packed_eager`` behaves like ``eager`` and the others like ``sdpa``.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from alignlab.errors import InputError, nearest
from alignlab.models import flash_attention
from alignlab.types.layout import PackedLayout

# Transformers takes a name that contains "flash" for a package of kernels to import, and refuses one that contains
# "sdpa" for architectures with additions to sdpa, which are computed by their eager function here.
IMPLEMENTATIONS = {"auto": "packed", "flash": "packed_varlen", "sdpa": "packed_buckets", "eager": "packed_eager"}
"""Names for ``model.attn_implementation``, and the names under which they are registered with Transformers."""

# Keywords that extend scaled dot products: sdpa does not support them, the model's own eager function does.
EAGER_ONLY = ("softcap", "s_aux", "position_bias")

# Transformers takes a 4D mask as prepared and builds none of T x T; the layout replaces it.
NO_MASK = (1, 1, 0, 0)


def implementation(name: str) -> str:
    """The registered name of what the user typed.

    Raises:
        InputError: This attention cannot separate the groups of a flat batch, or no kernel for it runs here.
    """
    if name not in IMPLEMENTATIONS:
        raise InputError(
            f"model.attn_implementation={name}",
            "this attention is not known to keep the documents of a flat batch separate",
            f"{nearest(name, IMPLEMENTATIONS)} Type one of: {', '.join(IMPLEMENTATIONS)}",
        )
    if name == "flash" and (why := flash_attention.missing()):
        raise _no_flash(why)
    return IMPLEMENTATIONS[name]


def _no_flash(why: str) -> InputError:
    instead = "Type model.attn_implementation=auto, which uses flash attention wherever it can"
    return InputError("model.attn_implementation=flash", why, instead)


def fitting(registered: str, config: PreTrainedConfig) -> str:
    """The registered name, or the closest supported one for an architecture that does not use the attention registry.

    Args:
        registered: A name from ``implementation``.
        config: Config of the model to build.

    Raises:
        InputError: Flash attention was asked for by name, and this architecture can never use it.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    in_registry = kind is None or kind._supports_attention_backend
    if registered == IMPLEMENTATIONS["flash"] and (why := _never_flash(config, in_registry)):
        raise _no_flash(why)
    if in_registry:
        return registered
    return "sdpa" if not registered.endswith("eager") and kind._supports_sdpa else "eager"


def _never_flash(config: PreTrainedConfig, in_registry: bool) -> str | None:
    """Why layers of this architecture never use flash attention, or ``None``."""
    config = config.get_text_config()
    if not in_registry:
        return f"{config.model_type} computes attention by code of its own"
    if getattr(config, "attn_logit_softcapping", None):
        return f"{config.model_type} caps its attention scores"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not flash_attention.takes(size):
        return f"its kernels do not take heads of size {size}"
    return None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    inner: Callable,
    sliding_window: int | None,
    flash: bool = False,
    **options,
) -> Tensor:
    """Compute attention by flash kernels, or bucket by bucket and restore the flat order of the outputs.

    Args:
        module: The attention layer; the inner function reads its settings.
        query: Shape ``[1, heads, T, d]``.
        key: Shape ``[1, key-value heads, T, d]``.
        value: Shape ``[1, key-value heads, T, d]``.
        layout: Layout of the T tokens.
        inner: Attention function of Transformers, called once per bucket.
        sliding_window: Path positions that each query attends to, including its own; ``None`` for all.
        flash: Whether to use flash kernels where they can compute this call.
        options: Passed to ``inner`` (``dropout``, ``scaling``, ``softcap``, …).

    Returns:
        Shape ``[1, T, heads, d]``.
    """
    layout.windows.add(sliding_window)
    window = sliding_window if sliding_window is not None and sliding_window < layout.longest_path else None
    plain = not options.get("dropout") and all(options.get(name) is None for name in EAGER_ONLY)
    if flash and plain and flash_attention.computes(query, key, value, layout.segments, window):
        return flash_attention.attend(query, key, value, layout.segments, window, options.get("scaling"))
    rows, none = layout.rows, layout.rows.repeated[:0]
    query = _Gather.apply(query[0].transpose(0, 1), rows.queries, layout.restore, none)
    key, value = (_Gather.apply(kind[0].transpose(0, 1), rows.keys, rows.own, rows.repeated) for kind in (key, value))
    queries = query.split([bucket.queries.numel() for bucket in layout.buckets])
    sizes = [bucket.keys.numel() for bucket in layout.buckets]
    outputs = []
    for bucket, *parts in zip(layout.buckets, queries, key.split(sizes), value.split(sizes), strict=True):
        mask = None if bucket.causal and window is None else bucket.mask(window)
        states = (part.unflatten(0, (len(bucket.offset), -1)).transpose(1, 2) for part in parts)
        output, _ = inner(module, *states, mask, **options)
        outputs.append(output.flatten(0, 1))
    return _Restore.apply(torch.cat(outputs), layout.restore)[None]


class _Gather(torch.autograd.Function):
    """``states[index]``, with a backward that gathers too: that of indexing adds row by row.

    The gradient of a token is that of its own place in the result, plus those of the places that repeat it. Places of
    padding have none, because no real query attends to them.
    """

    @staticmethod
    def forward(ctx, states: Tensor, index: Tensor, own: Tensor, repeated: Tensor) -> Tensor:
        ctx.save_for_backward(index, own, repeated)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        index, own, repeated = ctx.saved_tensors
        total = gradient.index_select(0, own)
        if len(repeated):
            total.index_add_(0, index[repeated], gradient.index_select(0, repeated))
        return total, None, None, None


class _Restore(torch.autograd.Function):
    """``states[index]`` for an index without repetitions."""

    @staticmethod
    def forward(ctx, states: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = len(states)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.num_rows, *gradient.shape[1:]).index_copy_(0, index, gradient), None


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


def _with_layout(inner: Callable, flash: bool = False) -> Callable:
    """Extend an attention function of Transformers with the keyword ``layout``."""

    def attend(module, query, key, value, attention_mask, *, layout=None, sliding_window=None, **options):
        if layout is None:
            return inner(module, query, key, value, attention_mask, **options)
        return packed_attention(module, query, key, value, layout, inner, sliding_window, flash, **options), None

    return attend


for _name, _inner, _mask, _flash in (
    ("packed", _fastest, sdpa_mask, True),
    ("packed_varlen", _fastest, sdpa_mask, True),
    ("packed_buckets", _fastest, sdpa_mask, False),
    ("packed_eager", _eager, eager_mask, False),
):
    AttentionInterface.register(_name, _with_layout(_inner, _flash))
    AttentionMaskInterface.register(_name, _mask)
