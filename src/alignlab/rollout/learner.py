"""Interface of a method to its rollout."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alignlab.distributed.strategies import Sharding
from alignlab.rollout.rollout import Rollout
from alignlab.types.batch import MicroBatch


class Learner(Protocol):
    """A method with a rollout.

    Args:
        policy: The policy in training.
        sharding: How its weights are sharded.
        device: Device of this rank.
        needs_greedy: Whether each prompt also gets a greedy completion, for a baseline.
        score_names: Names of the values that ``score`` returns; if empty, ``score`` is not called.
    """

    policy: nn.Module
    sharding: Sharding
    device: torch.device
    needs_greedy: bool
    score_names: tuple[str, ...]

    def scoring_mode(self) -> AbstractContextManager[Any]:
        """Score as in training, in its precision, but in eval mode (without dropout)."""

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Score a micro-batch before the first update: old and reference log-probs, values, entropies. Each ``[N]``."""

    def advantages(self, rollout: Rollout) -> Rollout:
        """Add a column ``advantages`` to a rollout, per completion ``[S]`` or per token ``[N]``."""
