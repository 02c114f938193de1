"""Decoder blocks compiled by ``torch.compile``, in place: names and weights stay as they are.

A block is one piece of code for all its layers, so that it is compiled once. Attention is left out: it has kernels of
its own, and the packed layout has another structure in each micro-batch. Sampling and comparisons with the model's own
forward run uncompiled, because each of their shapes would be compiled for few calls.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from alignlab.errors import InputError
from alignlab.models.packed_attention import IMPLEMENTATIONS
from alignlab.types.adapted import base_model, decoder_blocks


def compile_blocks(model: nn.Module) -> None:
    """Compile the decoder blocks of a model, at their first call.

    Raises:
        InputError: The architecture does not name its blocks.
    """
    blocks = decoder_blocks(model)
    if not blocks:
        asked = f"model.compile=true with {type(base_model(model)).__name__}"
        raise InputError(asked, "the architecture does not name its decoder blocks", "Type model.compile=false")
    _leave_attention_out()
    for block in blocks:
        block.compile(dynamic=True)  # the number of tokens differs from one micro-batch to the next
        if getattr(block, "gradient_checkpointing", False):
            block._gradient_checkpointing_func = _recompute_compiled


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model, compiled if the model is; ``copy.deepcopy`` alone leaves that out."""
    made = copy.deepcopy(model)
    if is_compiled(model):
        compile_blocks(made)
    return made


def is_compiled(model: nn.Module) -> bool:
    """Whether a model has compiled blocks."""
    return any(module._compiled_call_impl is not None for module in model.modules())


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run compiled blocks as plain PyTorch within the context."""
    if not is_compiled(model):  # the next line imports the compiler, which takes over a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@torch.compiler.disable
def _recompute_compiled(run: partial, *inputs: Any) -> Any:
    """Run a block whose activations are recomputed; the recomputation is outside of what is compiled.

    The other way round, as in newer versions of Transformers, nothing is compiled: attention would have to be left out
    within it. Older ones ask to run the block's own call, which is compiled.
    """
    forward = run.func if isinstance(run.func, MethodType) else _compiled(run.func)
    return checkpoint(forward, *run.args, *inputs, use_reentrant=False, **run.keywords)


@cache
def _compiled(forward: Callable) -> Callable:
    return torch.compile(forward, dynamic=True)


@cache
def _leave_attention_out() -> None:
    """Tell the compiler to call attention as it is."""
    for name in set(IMPLEMENTATIONS.values()):
        AttentionInterface.register(name, torch.compiler.disable(AttentionInterface()[name]))
