"""Fully sharded data parallel (FSDP2): each rank holds a shard of weights, gradients and optimizer state.

This uses PyTorch's ``fully_shard`` (arXiv 2304.11277 describes its predecessor). Blocks of the decoder are gathered one
at a time; embedding, last norm and vocabulary head belong to the root.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from alignlab.distributed.strategies.base import Result, Sharding, tensors_of
from alignlab.distributed.strategies.state import NamedState, Stored, carried_names, flat, names_of, step_device
from alignlab.types.adapted import base_model, decoder_blocks

Dtype = Literal["bfloat16", "float16", "float32"] | None


class Sharded(Sharding):
    """Access to weights and gradients sharded by FSDP2."""

    strategy: "FSDP"

    @property
    def compute_dtype(self) -> torch.dtype | None:
        return self.strategy.mixed_precision.param_dtype

    def shard(self, policy: nn.Module) -> nn.Module:
        self.strategy.root = self._shard(policy)
        self.strategy.trained_roots = [self.strategy.root]
        return policy

    def shard_beside(self, model: nn.Module, trained: bool = False) -> nn.Module:
        # Without training, no backward follows that would reshard the root.
        root = self._shard(model, **({} if trained else {"reshard_after_forward": True}))
        self.strategy.trained_roots += [root] if trained else []
        return model

    def _shard(self, model: nn.Module, **options: Any) -> nn.Module:
        root = base_model(model)
        blocks = decoder_blocks(model)
        for block in blocks:
            fully_shard(block, **self.strategy.options())
        fully_shard(root, **self.strategy.options(), **options)
        _prefetch(blocks, self.strategy.prefetch_blocks)
        type(root).run_sharded = _run
        register_fsdp_forward_method(root, "run_sharded")
        return root

    def forward(self, function: Callable[..., Result], *arguments: Any) -> Result:
        # Within the hooks of the root, which gather embedding and head for a decoder that is called directly.
        return _within(self.strategy.root, function, *arguments)

    def forward_beside(self, model: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
        root = base_model(model)
        return function(*arguments) if root is self.strategy.root else _within(root, function, *arguments)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        for root in self.strategy.trained_roots:
            root.set_requires_gradient_sync(last)
        yield

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        return parameter.grad if parameter.grad is None else _full(parameter.grad)

    def value(self, parameter: nn.Parameter) -> Tensor:
        return _full(parameter.detach())

    def local(self, gradients: list[Tensor]) -> list[Tensor]:
        return [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]

    def norm(self, gradients: list[Tensor]) -> Tensor:
        square = nn.utils.get_total_norm(gradients).to(self.strategy.root_device).square()
        dist.all_reduce(square)
        return square.sqrt()

    @contextmanager
    def whole(self, policy: nn.Module) -> Iterator[None]:
        shards = [module for module in self.strategy.root.modules() if isinstance(module, FSDPModule)]
        for module in shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in shards:
                module.set_reshard_after_forward(module is not self.strategy.root, recurse=False)
                module.reshard()

    def full_state_dict(self, policy: nn.Module) -> Mapping[str, Tensor]:
        reshard(self.strategy.root)
        return get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _within(root: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    kept: list[Result] = []
    root.run_sharded(lambda: kept.append(function(*arguments)) or tensors_of(kept[0]))
    return kept[0]


def _run(self: nn.Module, function: Callable[[], Any]) -> Any:
    return function()


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _prefetch(blocks: list[nn.Module], num_ahead: int) -> None:
    for index, block in enumerate(blocks):
        block.set_modules_to_forward_prefetch(blocks[index + 1 : index + 1 + num_ahead])
        block.set_modules_to_backward_prefetch(blocks[max(0, index - num_ahead) : index][::-1])


class FSDP(NamedState, ModelParallelStrategy):
    """Lightning's strategy with all ranks on the data-parallel axis.

    Args:
        mixed_precision: Dtypes of gathered weights and reduced gradients.
        offload: Device on which shards are stored.
        prefetch_blocks: Number of blocks gathered ahead of the current one; 0 leaves it to FSDP2.
        timeout: Time after which a rank that does not respond ends the job.
    """

    sharding = Sharded

    def __init__(
        self, *, mixed_precision: MixedPrecisionPolicy, offload: OffloadPolicy, prefetch_blocks: int, timeout: timedelta
    ):
        super().__init__(timeout=timeout)
        self.mixed_precision, self.offload, self.prefetch_blocks = mixed_precision, offload, prefetch_blocks
        self.root: Any = None
        self.trained_roots: list[Any] = []

    def setup_environment(self) -> None:
        # Lightning's default is tensor parallelism within a machine.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``fully_shard``."""
        mesh = self.device_mesh["data_parallel"]
        return {"mesh": mesh, "mp_policy": self.mixed_precision, "offload_policy": self.offload}

    def weight_shards(self) -> dict[str, Tensor]:
        reshard(self.root)
        carried = carried_names(self.lightning_module)
        return {name: tensor for name, tensor in self.lightning_module.state_dict().items() if name in carried}

    def optimizer_shards(self) -> dict[str, dict[str, Any]]:
        state = self.optimizers[0].state
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        return {names[id(parameter)]: entries for parameter, entries in state.items()}

    def optimizer_groups(self) -> list[dict[str, Any]]:
        names = names_of(self.optimizers[0], self.lightning_module)
        return [{**group, "params": of} for group, of in zip(self.optimizers[0].param_groups, names, strict=True)]

    def fill(self, stored: Stored) -> None:
        optimizer = self.optimizers[0]
        parameters = dict(self.lightning_module.named_parameters())
        named = [(name, settings) for settings in stored.groups for name in settings["params"]]
        for name, settings in named:
            weight, shapes = parameters[name], stored.optimizer_shapes(name)
            optimizer.state[weight] = {key: _empty(weight, shape, settings) for key, shape in shapes.items()}
        stored.fill(flat(self.weight_shards(), self.optimizer_shards()))
        for group, settings in zip(optimizer.param_groups, stored.groups, strict=True):
            group.update({key: value for key, value in settings.items() if key != "params"})


def _empty(parameter: nn.Parameter, shape: tuple[int, ...], group: dict[str, Any]) -> Tensor:
    """An empty tensor of the optimizer's state: a shard if it has the parameter's shape."""
    if shape == tuple(parameter.shape):
        return torch.zeros_like(parameter)
    return torch.zeros(shape, device=step_device(group, parameter))


def reshard(root: nn.Module) -> None:
    """Free gathered weights: a forward without a backward keeps some blocks gathered."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def fsdp(
    *,
    timeout_seconds: Annotated[float, Field(gt=0)],
    param_dtype: Dtype,
    reduce_dtype: Dtype,
    cpu_offload: bool,
    prefetch_blocks: Annotated[int, Field(ge=0)],
) -> FSDP:
    """Shards of weights, gradients and optimizer state (FSDP2).

    Args:
        timeout_seconds: Time after which a rank that does not respond ends the job.
        param_dtype: Dtype of gathered weights and of the computation; ``None`` for that of the weights.
        reduce_dtype: Dtype in which gradients are reduced; ``None`` for that of the computation.
        cpu_offload: Store shards and optimizer state in the host's memory.
        prefetch_blocks: Number of blocks gathered ahead of the current one; 0 leaves it to FSDP2.
    """
    dtypes = {"param_dtype": param_dtype, "reduce_dtype": reduce_dtype}
    policy = MixedPrecisionPolicy(**{key: name and getattr(torch, name) for key, name in dtypes.items()})
    return FSDP(
        mixed_precision=policy,
        offload=CPUOffloadPolicy() if cpu_offload else OffloadPolicy(),
        prefetch_blocks=prefetch_blocks,
        timeout=timedelta(seconds=timeout_seconds),
    )
