"""Memory of one micro-batch, counted on tensors without data.

PyTorch's fake tensors have shapes and dtypes and run every operator's shape rules, but hold no numbers. The model's own
forward and backward therefore give the bytes of any architecture, precision and adapter. Blocks of a decoder are alike,
so two and four of them are run, and the rest follows by a straight line.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from alignlab.types.adapted import base_model, decoder_blocks

FEW, SOME = 2, 4
"""Numbers of blocks that are run, of a decoder with more."""


class MicroBatchBytes(NamedTuple):
    """Memory of a micro-batch, without weights and gradients.

    Args:
        activations: Bytes that the forward of the decoder keeps for the backward.
        peak: Highest number of bytes at once, in forward or backward.
    """

    activations: int
    peak: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operators return, until they are freed.

    Args:
        held: Tensors that are not counted: weights and inputs.
    """

    def __init__(self, held: Iterator[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in held)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self.now -= num_bytes


class WithoutData(FakeTensorMode):
    """Context in which tensors are made without data, and modules can be converted.

    PyTorch's mode remembers every tensor by a weak reference; a module then refuses to convert its weights.
    """

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        self.fake_tensor_converter.meta_converter.tensor_memo.clear()
        return result


def micro_batch_bytes(
    model: nn.Module, score: Callable[[], Tensor], mode: WithoutData, autocast: torch.dtype | None
) -> MicroBatchBytes:
    """Memory of one micro-batch.

    Args:
        model: Made within ``mode``, in train mode.
        score: Computes what a method computes with the model, as one tensor with gradient.
        mode: See ``WithoutData``.
        autocast: Dtype of automatic mixed precision; ``None`` for none.
    """
    layers = _list_of_blocks(model)
    if layers is None or len(layers) <= SOME:
        return _run(model, score, mode, autocast)
    few, some = (_run_some(layers, number, model, score, mode, autocast) for number in (FEW, SOME))
    per_block = [(more - less) / (SOME - FEW) for less, more in zip(few, some, strict=True)]
    return MicroBatchBytes(
        *(int(less + (len(layers) - FEW) * slope) for less, slope in zip(few, per_block, strict=True))
    )


def _run_some(layers: nn.ModuleList, number: int, *arguments: Any) -> MicroBatchBytes:
    """Run a decoder with its first blocks only."""
    blocks = dict(layers._modules)
    layers._modules = dict(list(blocks.items())[:number])
    try:
        return _run(*arguments)
    finally:
        layers._modules = blocks


def _run(
    model: nn.Module, score: Callable[[], Tensor], mode: WithoutData, autocast: torch.dtype | None
) -> MicroBatchBytes:
    precision = torch.autocast("cpu", dtype=autocast) if autocast else nullcontext()
    after_decoder: list[int] = []
    with mode, LiveBytes([*model.parameters(), *model.buffers()]) as live, precision, _without_gradients(model):

        def note(*_: Any) -> None:
            if torch.is_grad_enabled():  # not of a reference, which keeps nothing
                after_decoder.append(live.now)

        hook = base_model(model).get_decoder().register_forward_hook(note)
        try:
            score().sum().backward()
        finally:
            hook.remove()
    return MicroBatchBytes(after_decoder[-1], live.peak)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Free the gradient of each weight when it is complete: gradients are another term."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _drop(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _list_of_blocks(model: nn.Module) -> nn.ModuleList | None:
    """The list that holds the blocks of the decoder; ``None`` if the architecture has no such list."""
    blocks = decoder_blocks(model)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module))
    return next((one for one in lists if blocks and one[0] is blocks[0] and len(one) == len(blocks)), None)
