"""What a method asks of the way in which its work is spread; each strategy answers in its own words."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

Result = TypeVar("Result")


class Sharding:
    """The answers where every rank holds all weights: one process, or a copy per process (DDP).

    Args:
        strategy: Lightning's side of it.
    """

    def __init__(self, strategy: Strategy):
        self.strategy = strategy

    @property
    def is_low_precision(self) -> bool:
        """Whether weights are narrowed to 16 bits to compute with."""
        return False

    def shard(self, policy: nn.Module) -> nn.Module:
        """Leave on this rank its share of a freshly built model; in place."""
        return policy

    def shard_beside(self, model: nn.Module, trained: bool = False) -> nn.Module:
        """Leave on this rank its share of a model beside the policy, a reference or a critic; in place."""
        return model

    def forward_beside(self, model: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that computes with such a model, or with the policy, inside ``forward``."""
        return function(*arguments)

    def forward(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that computes with the policy, in whatever frame its sharded weights need.

        Args:
            function: Every rank calls it, the same number of times.
            arguments: Its arguments.
        """
        return function(*arguments)

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Stands around forward and backward of a micro-batch: gradients travel with the last of a step only."""
        with _block_parallel_sync_behavior(self.strategy, block=not last):
            yield

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The whole gradient of a parameter after the last backward of a step; every rank must ask."""
        return parameter.grad

    def value(self, parameter: nn.Parameter) -> Tensor:
        """The whole value of a parameter; every rank must ask."""
        return parameter.detach()

    def update(self, optimizer: Any, parameters: list[nn.Parameter], limit: float | None, lost: bool) -> Tensor:
        """Clip, step, and forget the gradients.

        The optimizer is not called, so that neither weights nor its own state change, where the step is lost, and
        where the gradient is not finite or zero everywhere: decay and momentum would move the weights all the same.

        Args:
            optimizer: As the method has it from Lightning.
            parameters: Those that are trained.
            limit: Largest global norm of the gradient; None does not clip.
            lost: Whether nothing may be learned from this step, whatever its gradient; the same on every rank.

        Returns:
            Global norm before clipping, the same on every rank. Shape ``[]``.
        """
        scaler = getattr(self.strategy.precision_plugin, "scaler", None)
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        gradients = self.local([p.grad for p in parameters if p.grad is not None])
        norm = self.norm(gradients)
        moves = not lost and moves_weights(norm)
        if moves and limit is not None:
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0).to(gradients[0].device))
        self.step(optimizer, scaler, moves)
        optimizer.zero_grad()
        return norm

    def step(self, optimizer: Any, scaler: torch.amp.GradScaler | None, moves: bool) -> None:
        """Let the optimizer step unless nothing is to move; Lightning counts it as a step in any case."""
        if scaler is None and moves:
            optimizer.step()
            return
        optimizer._on_before_step()
        if scaler is not None:  # the optimizer's own step, as Lightning calls it, would unscale a second time
            if moves:
                scaler.step(optimizer.optimizer)
            scaler.update()
        optimizer._on_after_step()

    def local(self, gradients: list[Tensor]) -> list[Tensor]:
        """What this rank holds of some gradients."""
        return gradients

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Global norm of the gradients of which each rank holds what ``local`` gave."""
        return nn.utils.get_total_norm(gradients)

    @contextmanager
    def whole(self, policy: nn.Module) -> Iterator[None]:
        """All weights stand on every rank, so that ranks may run the model without each other (generation)."""
        yield

    def full_state_dict(self, policy: nn.Module) -> Mapping[str, Tensor] | None:
        """All weights by name, on the CPU of rank 0, where they are sharded; None: as the policy has them."""
        return None


def sharding_of(strategy: Strategy) -> Sharding:
    """How a strategy spreads the work; one that is not ours holds all weights on every rank."""
    return getattr(strategy, "sharding", Sharding)(strategy)


def moves_weights(norm: Tensor) -> bool:
    """Whether a gradient of this global norm is one to learn from: finite, and not zero everywhere."""
    return bool(norm.isfinite() & (norm != 0))


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter, however little of it this rank holds."""
    return getattr(parameter, "ds_shape", parameter.shape)


def num_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Elements of all parameters, over all ranks that share them."""
    wanted = (p for p in model.parameters() if p.requires_grad or not trainable_only)
    return sum(full_shape(parameter).numel() for parameter in wanted)


def tensors_of(result: Any) -> list[Any]:
    """What is in a result, as a list in which hooks find the tensors that carry gradients."""
    return [getattr(result, field.name) for field in fields(result)] if is_dataclass(result) else [result]
