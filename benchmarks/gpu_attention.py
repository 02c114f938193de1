"""Attention of the packed layout on one device: error and time of each implementation.

    python benchmarks/gpu_attention.py [--dry-run]

Errors are norms of the difference from the model's own eager attention in float64, relative to the norm of that, for
the output and for the gradients of queries, keys and values together. The last line is a table in JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from transformers import AttentionInterface
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from alignlab.models.packed_attention import implementation
from alignlab.types.layout import PackedLayout, packed_layout

HEADS, KEY_VALUE_HEADS, HEAD_SIZE = 12, 2, 128

LAYOUTS: dict[str, list[list[int]]] = {
    "8 documents of 2,048": [[0, 2048]] * 8,
    "64 ragged documents": [[0, 32 + 7 * number] for number in range(64)],
    "8 prompts of 512, 4 completions each of 384": [[512, 384, 384, 384, 384]] * 8,
    "ragged groups": [[100 + 37 * n, *(50 + 61 * ((n + k) % 5) for k in range(n % 6))] for n in range(20)],
}
"""Groups of each layout, as ``(prompt, completion, …)`` in tokens."""

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def attend(name: str, states: list[Tensor], layout: PackedLayout) -> Tensor:
    """Call an implementation as a Qwen2 layer does. Returns ``[1, T, heads, d]``."""
    layer = SimpleNamespace(num_key_value_groups=HEADS // KEY_VALUE_HEADS, is_causal=True, training=True)
    layer = as_qwen2(layer)
    inner = AttentionInterface()[implementation(name)]
    return inner(layer, *states, None, layout=layout, scaling=HEAD_SIZE**-0.5, dropout=0.0)[0]


def as_qwen2(namespace: SimpleNamespace) -> Any:
    """An object of Qwen2's class with these attributes: eager attention is looked up in the module of the class."""
    layer = Qwen2Attention.__new__(Qwen2Attention)
    torch.nn.Module.__init__(layer)
    for key, value in vars(namespace).items():
        setattr(layer, key, value)
    return layer


def drawn(num_tokens: int, device: str) -> list[Tensor]:
    """Random queries, keys, values and gradient of the output, in float64. Each ``[1, heads, T, d]``."""
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
    states = [torch.randn(1, n, num_tokens, HEAD_SIZE, generator=generator, dtype=torch.float64) for n in heads]
    states.append(torch.randn(1, num_tokens, HEADS, HEAD_SIZE, generator=generator, dtype=torch.float64))
    return [state.to(device) for state in states]


def outputs(name: str, given: list[Tensor], layout: PackedLayout, dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values."""
    states = [state.to(dtype).requires_grad_() for state in given[:3]]
    output = attend(name, states, layout)
    return [output.detach(), *torch.autograd.grad(output, states, given[3].to(dtype))]


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """Largest relative error of the tensors; NaN stays NaN."""
    errors = [(a.double() - b).norm() / b.norm() for a, b in zip(ours, exact, strict=True)]
    return torch.stack(errors).max().item() if all(e.isfinite() for e in errors) else float("nan")


def milliseconds(call: Callable[[], Any], on_gpu: bool) -> float:
    """Median time of a call, after a warm-up."""
    times = []
    for _ in range(7):
        started = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[2:])


def main() -> None:
    """Print a line per layout, format and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="shorter sequences, on any device")
    parser.add_argument("--lock", default="", help="file to lock while the device is used")
    asked = parser.parse_args()
    with FileLock(asked.lock) if asked.lock else nullcontext():
        print(json.dumps(table(asked.dry_run)))


def table(dry_run: bool) -> list[dict[str, Any]]:
    """Measure every layout in every format with every implementation."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for title, groups in LAYOUTS.items():
        groups = [[-(-n // 16) for n in group] for group in groups] if dry_run else groups
        layout = packed_layout(groups).to(device)
        given = drawn(sum(map(sum, groups)), device)
        exact = outputs("eager", given, layout, torch.float64)
        for dtype_name, dtype in FORMATS.items():
            for name in ("auto", "sdpa", "eager"):
                row = {"layout": title, "format": dtype_name, "implementation": name}
                try:
                    row["error"] = error(outputs(name, given, layout, dtype), exact)
                    row["ms"] = milliseconds(partial(outputs, name, given, layout, dtype), device == "cuda")
                except RuntimeError as failed:
                    row["failed"] = str(failed).splitlines()[0][:200]
                print(row, flush=True)
                rows.append(row)
    return rows


if __name__ == "__main__":
    main()
