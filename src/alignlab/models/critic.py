"""Critics: what a policy may expect from each token on."""

import copy

import torch
from torch import Tensor, nn

from alignlab.distributed.strategies import Sharding
from alignlab.models.component import Component
from alignlab.models.scoring import last_hidden_state
from alignlab.types.adapted import base_model
from alignlab.types.batch import MicroBatch


class Critic(Component):
    """A linear head on hidden states: those of the policy, or of a trunk of its own.

    Args:
        separate: Take a trained copy of the policy as trunk, else the policy's own hidden states.
    """

    is_trained = True

    def __init__(self, *, separate: bool):
        super().__init__()
        self.separate = separate
        self.trunk: nn.Module | None = None
        self.head: nn.Linear | None = None
        self._sharding: Sharding | None = None

    def build(self, policy: nn.Module) -> None:
        """Start from the policy, expecting nothing."""
        self.trunk = copy.deepcopy(policy) if self.separate else None
        self.head = nn.Linear(base_model(policy).config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.to(next(policy.parameters()).device)
        if self.separate:
            self._freeze_beyond_decoder()

    def shard(self, policy: nn.Module, sharding: Sharding) -> None:
        """Share its weights among ranks."""
        self._sharding = sharding
        sharding.shard_beside(self, trained=True)

    def values(self, batch: MicroBatch, policy_hidden: Tensor) -> Tensor:
        """Values before each supervised token.

        Args:
            batch: A micro-batch.
            policy_hidden: The policy's hidden states that predict the tokens. Shape ``[N, hidden]``.

        Returns:
            float32, carries the gradient. Shape ``[N]``.
        """
        return self._sharding.forward_beside(self, self._values, batch, policy_hidden)

    def _values(self, batch: MicroBatch, policy_hidden: Tensor) -> Tensor:
        hidden = policy_hidden if self.trunk is None else self._trunk_hidden(batch)
        # As for a reward model's score, 16 bits could not tell apart what differs by less than a hundredth of its size.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype))[:, 0].float()

    def _trunk_hidden(self, batch: MicroBatch) -> Tensor:
        return last_hidden_state(self.trunk, batch.inputs).flatten(0, 1)[batch.source_positions]

    def _freeze_beyond_decoder(self) -> None:
        """Nothing asks the trunk's vocabulary head, and DDP waits for a gradient of every tensor that trains."""
        base = base_model(self.trunk)
        asked = {id(parameter) for parameter in base.get_decoder().parameters()}
        for parameter in (p for p in base.parameters() if id(p) not in asked):
            parameter.requires_grad_(False)
