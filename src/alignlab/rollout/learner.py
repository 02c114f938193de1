"""What a rollout asks of the method that learns from it: the policy, and what it says of tokens."""

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
        policy: The model in training.
        sharding: How its weights are shared among ranks.
        device: Of this rank.
        needs_greedy: Whether each prompt is also completed greedily, for a baseline.
        score_names: Names of what ``score`` returns; nothing is scored where there is none.
    """

    policy: nn.Module
    sharding: Sharding
    device: torch.device
    needs_greedy: bool
    score_names: tuple[str, ...]

    def scoring_mode(self) -> AbstractContextManager[Any]:
        """The number formats of the training forward, without dropout."""

    def score(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Score a micro-batch before the first update: old and reference log-probs, values, entropies. Each ``[N]``."""

    def advantages(self, rollout: Rollout) -> Rollout:
        """The rollout with an ``advantages`` column, per completion ``[S]`` or per token ``[N]``."""
