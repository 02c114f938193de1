"""The interface between methods and strategies: access to weights and gradients that may be sharded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

Result = TypeVar("Result")


class Sharding:
    """Access to a model that every rank holds in full: one process, or a copy per process (DDP).

    Args:
        strategy: Lightning's strategy.
    """

    def __init__(self, strategy: Strategy):
        self.strategy = strategy

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype that weights are cast to for the computation; ``None`` for their own."""
        return None

    def shard(self, policy: nn.Module) -> nn.Module:
        """Shard a newly built policy in place, such that this rank keeps its shard only."""
        return policy

    def shard_beside(self, model: nn.Module, trained: bool = False) -> nn.Module:
        """Shard another model, a reference or a critic, in place.

        Args:
            model: Not sharded yet.
            trained: Whether it is trained.
        """
        return model

    def float32_copies(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Frozen copies of parameters in float32, sharded as they are, for a checkpoint to hold.

        Args:
            parameters: Already sharded.
        """
        return [nn.Parameter(parameter.detach().float(), requires_grad=False) for parameter in parameters]

    def forward_beside(self, model: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that computes with another model or with the policy, within ``forward``.

        Args:
            model: Model that the function uses.
            function: Called by every rank, the same number of times.
            arguments: Its arguments.
        """
        return function(*arguments)

    def forward(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that computes with the policy, such that its sharded weights are gathered.

        Args:
            function: Called by every rank, the same number of times.
            arguments: Its arguments.
        """
        return function(*arguments)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Context of a micro-batch's forward and backward: gradients are reduced with the last one of a step only.

        Args:
            last: Whether it is the last micro-batch of the step.
        """
        with _block_parallel_sync_behavior(self.strategy, block=not last):
            yield

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The gradient of a parameter in its full shape, after the last backward of a step. All ranks call this."""
        return parameter.grad

    def value(self, parameter: nn.Parameter) -> Tensor:
        """The value of a parameter in its full shape. All ranks must call this."""
        return parameter.detach()

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The scaler of gradients in float16; ``None`` in other precisions."""
        return getattr(self.strategy.precision_plugin, "scaler", None)

    @property
    def loss_scale(self) -> float:
        """Factor of the loss in the backward pass: 1 without a scaler."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def update(self, optimizer: Any, parameters: list[nn.Parameter], limit: float | None, skipped: bool) -> Tensor:
        """Clip the gradients, take an optimizer step, and reset the gradients.

        The optimizer is not called if ``skipped``, or if the gradient is not finite or zero everywhere: decay and
        momentum would change the weights even with a gradient of zero. Weights and optimizer state then stay the same.

        Args:
            optimizer: Lightning's optimizer.
            parameters: The trained parameters.
            limit: Largest global norm of the gradient; ``None`` for no clipping.
            skipped: Whether to skip the optimizer whatever the gradient is; the same on all ranks.

        Returns:
            Global norm before clipping, the same on all ranks. Shape ``[]``.
        """
        scaler = self.scaler
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        gradients = self.local([p.grad for p in parameters if p.grad is not None])
        norm = self.norm(gradients)
        moves = not skipped and moves_weights(norm)
        if moves and limit is not None:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].device))
        self.step(optimizer, scaler, moves)
        optimizer.zero_grad()
        return norm

    def step(self, optimizer: Any, scaler: torch.amp.GradScaler | None, moves: bool) -> None:
        """Take an optimizer step; without ``moves`` only let Lightning count it."""
        if scaler is None and moves:
            optimizer.step()
            return
        optimizer._on_before_step()
        if scaler is not None:  # Lightning's optimizer step would unscale a second time
            if moves:
                scaler.step(optimizer.optimizer)
            scaler.update()
        optimizer._on_after_step()

    def local(self, gradients: list[Tensor]) -> list[Tensor]:
        """This rank's shards of gradients of any shape."""
        return gradients

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Global norm of gradients from this rank's shards, which ``local`` returned. Shape ``[]``."""
        return nn.utils.get_total_norm(gradients)

    @contextmanager
    def whole(self, policy: nn.Module) -> Iterator[None]:
        """Gather all weights on every rank, so that ranks can run the model independently (generation)."""
        yield

    def full_state_dict(self, policy: nn.Module) -> Mapping[str, Tensor] | None:
        """All weights by name on the CPU of rank 0 if they are sharded, else ``None``. All ranks must call this."""
        return None

    def master_state_dict(self, policy: nn.Module) -> Mapping[str, Tensor] | None:
        """``full_state_dict`` with the weights that the optimizer updates, not rounded copies of them."""
        return self.full_state_dict(policy)


class StaysOnDevice(Strategy):
    """Leaves the model on its device when a fit ends: there it is written, and compared with what was written.

    Lightning moves it to the CPU, where quantised and partitioned weights no longer fit their inputs. A strategy names
    this class after Lightning's own, whose teardowns then end here.
    """

    def teardown(self) -> None:
        """Free the device of everything else."""
        _optimizers_to_device(self.optimizers, torch.device("cpu"))
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()


def sharding_of(strategy: Strategy) -> Sharding:
    """The ``Sharding`` of a strategy; for one of Lightning's own, every rank must hold all weights."""
    return getattr(strategy, "sharding", Sharding)(strategy)


def moves_weights(norm: Tensor) -> bool:
    """Whether a gradient with this global norm, of shape ``[]``, is finite and not zero everywhere."""
    return bool(norm.isfinite() & (norm != 0))


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Full shape of a parameter, also if it is sharded."""
    return getattr(parameter, "ds_shape", parameter.shape)


def num_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of elements of all parameters, in their full shapes."""
    wanted = (p for p in model.parameters() if p.requires_grad or not trainable_only)
    return sum(full_shape(parameter).numel() for parameter in wanted)


def tensors_of(result: Any) -> list[Any]:
    """The contents of a result as a list, in which hooks find tensors with gradients; they skip dataclasses."""
    return [getattr(result, field.name) for field in fields(result)] if is_dataclass(result) else [result]
