"""What a method holds beside its policy: a reference, a critic. Held, not inherited."""

from typing import Any

from torch import nn

from alignlab.distributed.strategies import Sharding
from alignlab.types.batch import StepBatch


class Component(nn.Module):
    """A part of a method. Assigned to an attribute of the method, it is built, sharded and told of steps with it."""

    is_trained: bool = False
    """Whether the optimizer updates its weights."""

    changes: bool = False
    """Whether its weights change though they are not trained, so that a checkpoint must carry them."""

    def build(self, policy: nn.Module) -> None:
        """Make its weights.

        Args:
            policy: Whole and untrained in this run.
        """

    def shard(self, policy: nn.Module, sharding: Sharding) -> None:
        """Share its weights among ranks.

        Args:
            policy: As the method computes with it from now on.
            sharding: How weights are shared.
        """

    def before_fit(self, trainer: Any) -> None:
        """What is done once before training.

        Args:
            trainer: Lightning's; ``trainer.lightning_module`` is the method.
        """

    def before_step(self, step: StepBatch, num_steps_done: int) -> None:
        """What is done before a training step.

        Args:
            step: The micro-batches of this rank.
            num_steps_done: Optimizer steps before it.
        """

    def after_step(self, num_steps_done: int) -> None:
        """What follows an update of the policy's weights.

        Args:
            num_steps_done: Optimizer steps, this one included.
        """
