"""Base class of the models that a method has in addition to its policy: a reference, a critic."""

from typing import Any

from torch import nn

from alignlab.distributed.strategies import Sharding
from alignlab.types.batch import StepBatch


class Component(nn.Module):
    """A model that is built and sharded with the policy, and has hooks before and after steps.

    The method finds it among its attributes.
    """

    is_trained: bool = False
    """Whether the optimizer updates its weights."""

    lr_factor: float = 1.0
    """Its learning rate divided by that of the policy, if it is trained."""

    changes: bool = False
    """Whether its weights change without being trained, so that checkpoints must include them."""

    adapter: str | None = None
    """Name of the adapter in the policy that has its weights, for a component without a model of its own."""

    def build(self, policy: nn.Module) -> None:
        """Make its weights.

        Args:
            policy: The initial policy, not sharded.
        """

    def shard(self, policy: nn.Module, sharding: Sharding) -> None:
        """Shard its weights.

        Args:
            policy: The sharded policy.
            sharding: How weights are sharded.
        """

    def before_fit(self, trainer: Any) -> None:
        """Called once before training.

        Args:
            trainer: Lightning's trainer; ``trainer.lightning_module`` is the method.
        """

    def before_step(self, step: StepBatch, num_steps_done: int) -> None:
        """Called before each training step.

        Args:
            step: This rank's part of the step.
            num_steps_done: Number of optimizer steps so far.
        """

    def after_step(self, num_steps_done: int) -> None:
        """Called after each update of the policy.

        Args:
            num_steps_done: Number of optimizer steps so far, including this one.
        """
