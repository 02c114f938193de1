"""Flash attention over the packed layout: kernels for segments of varying length, without gathers or padding.

All segments of the flat batch attend causally in one call. Completions that share a prompt with others also attend to
it, in a second call in which all completions of a group are one block of queries over the prompt's keys. The two
results are merged by their log-sum-exps, as if the keys had been in one softmax:

    lse = log(exp(lse_1) + exp(lse_2))        out = exp(lse_1 - lse) * out_1 + exp(lse_2 - lse) * out_2

A kernel's backward recomputes the probabilities as ``exp(scores - lse)`` and needs of the output only the inner product
with its gradient. Given the merged output and log-sum-exp, each call returns its exact part of the gradients.

The second call takes gathered copies. The flat tensors would do, if the other tokens were queries without keys; but the
kernels differ in what they return for these (0, infinities, memory as it was), and so would have to be masked.
"""

from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignlab.types.layout import Lengths, Segments

DTYPES = (torch.bfloat16, torch.float16)
MAX_HEAD_SIZE = 256
MIN_CAPABILITY = (8, 0)

# How many keys to the left and to the right of its own position a query attends to; -1 for all.
CAUSAL = (-1, 0)
WHOLE = (-1, -1)


def missing(device: torch.device | None = None) -> str | None:
    """Why no kernel runs on a device, by default the current CUDA device; ``None`` if kernels run there."""
    if not torch.cuda.is_available() or (device and device.type != "cuda"):
        return "there is no CUDA device"
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return "this build of PyTorch has no flash attention for CUDA"
    if torch.cuda.get_device_capability(device) < MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is too old for its kernels"
    return None


_missing_on = cache(missing)


def takes(head_size: int) -> bool:
    """Whether the kernels take heads of a size."""
    return head_size % 8 == 0 and 0 < head_size <= MAX_HEAD_SIZE


def computes(query: Tensor, key: Tensor, value: Tensor, segments: Segments, window: int | None) -> bool:
    """Whether ``attend`` can compute this call."""
    if _missing_on(query.device) or not segments.causal.longest:
        return False
    if {_dtype(query), _dtype(key), _dtype(value)} not in ({dtype} for dtype in DTYPES):
        return False
    if not takes(query.shape[-1]) or not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return False
    # Behind a shared prompt a window would begin at another key for every query, which no kernel's window expresses.
    return window is None or segments.shared is None or segments.shared.longest_path <= window


def _dtype(states: Tensor) -> torch.dtype:
    """Dtype to compute in: under autocast its own, as for sdpa. Rotary embeddings leave float32 queries there."""
    device = states.device.type
    eligible = states.dtype != torch.float64 and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if eligible else states.dtype


def attend(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, window: int | None, scale: float | None
) -> Tensor:
    """Compute attention over a flat batch.

    Args:
        query: Shape ``[1, heads, T, d]``.
        key: Shape ``[1, key-value heads, T, d]``; the kernels share each head among the queries' heads.
        value: Shape ``[1, key-value heads, T, d]``.
        segments: Segments of the T tokens.
        window: Path positions that each query attends to, including its own; ``None`` for all.
        scale: Factor of the scores; ``None`` for one over the root of d.

    Returns:
        Shape ``[1, T, heads, d]``.
    """
    states = (part[0].transpose(0, 1).to(_dtype(part)) for part in (query, key, value))
    sides = CAUSAL if window is None else (window - 1, 0)
    return _Attention.apply(*states, segments, sides, scale)[None]


class _Attention(torch.autograd.Function):
    """States of shape ``[T, heads, d]``; the log-sum-exps have shape ``[heads, T]`` and are float32."""

    @staticmethod
    def forward(ctx, query, key, value, segments, sides, scale):
        causal, shared = segments.causal, segments.shared
        out, lse = kernel(query, key, value, causal, causal, sides, scale)
        if shared is not None:
            tokens, prompts = shared.queries, shared.keys
            states = (query[tokens], key[prompts], value[prompts])
            second, second_lse = kernel(*states, shared.completions, shared.prompts, WHOLE, scale)
            first, first_lse = out[tokens], lse[:, tokens]
            merged = torch.logaddexp(first_lse, second_lse)
            # The weights are float32, and so is the sum until it is rounded once.
            both = first * _weight(first_lse, merged) + second * _weight(second_lse, merged)
            out[tokens] = both.to(out.dtype)
            lse[:, tokens] = merged
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.sides, ctx.scale = segments, sides, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, key, value, out, lse = ctx.saved_tensors
        causal, shared = ctx.segments.causal, ctx.segments.shared
        gradients = kernel_backward(gradient, query, key, value, out, lse, causal, causal, ctx.sides, ctx.scale)
        if shared is not None:
            tokens, prompts = shared.queries, shared.keys
            states = (gradient[tokens], query[tokens], key[prompts], value[prompts], out[tokens], lse[:, tokens])
            second = kernel_backward(*states, shared.completions, shared.prompts, WHOLE, ctx.scale)
            for total, part, rows in zip(gradients, second, (tokens, prompts, prompts), strict=True):
                total.index_add_(0, rows, part)
        return *gradients, None, None, None


def _weight(part: Tensor, whole: Tensor) -> Tensor:
    """Share of the softmax that belongs to a part. Log-sum-exps ``[heads, Q]`` → ``[Q, heads, 1]``."""
    return (part - whole).exp().T[..., None]


def kernel(
    query: Tensor, key: Tensor, value: Tensor, queries: Lengths, keys: Lengths, sides: tuple[int, int], scale
) -> tuple[Tensor, Tensor]:
    """Outputs ``[Q, heads, d]`` and log-sum-exps ``[heads, Q]`` of segments of queries over segments of keys.

    Source: called as in ``torch.nn.attention.varlen``, which does not give its backward another log-sum-exp.
    """
    states = [part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)]
    lengths, options = _arguments(queries, keys, sides, scale)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(*states, *lengths, 0.0, sides == CAUSAL, False, **options)
    return out, lse


def kernel_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    queries: Lengths,
    keys: Lengths,
    sides: tuple[int, int],
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the query, key and value, given the output and log-sum-exp over all keys of each query."""
    states = [part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value)]
    lengths, options = _arguments(queries, keys, sides, scale)
    # The state of the generator and an unused argument, which matter for dropout only.
    random = (torch.zeros(2, dtype=torch.uint64, device=query.device), torch.empty(0, device=query.device))
    given = (gradient.contiguous(), *states, out.contiguous(), lse.contiguous())
    return torch.ops.aten._flash_attention_backward(*given, *lengths, 0.0, sides == CAUSAL, *random, **options)


def _arguments(queries: Lengths, keys: Lengths, sides: tuple[int, int], scale: float | None):
    # The longest lengths are upper bounds. With a bound of 1 query, which a single token would give, the kernel takes
    # a path for decoding, which expects one query for every segment of keys and orders the log-sum-exps differently.
    lengths = (queries.cumulative, keys.cumulative, max(queries.longest, 2), max(keys.longest, 2))
    return lengths, {"scale": scale, "window_size_left": sides[0], "window_size_right": sides[1]}
