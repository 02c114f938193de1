"""The critic (value model) of PPO: predicts the return from each token on."""

import torch
from torch import Tensor, nn

from alignlab.distributed.strategies import Sharding
from alignlab.models.compiled import copied
from alignlab.models.component import Component
from alignlab.models.scoring import last_hidden_state
from alignlab.types.adapted import base_model
from alignlab.types.batch import MicroBatch


class Critic(Component):
    """A linear value head on the hidden states of the policy, or of a separate trunk.

    Args:
        separate: Whether to use a trained copy of the policy as trunk, instead of the policy's own hidden states.
    """

    is_trained = True

    def __init__(self, *, separate: bool):
        super().__init__()
        self.separate = separate
        self.trunk: nn.Module | None = None
        self.head: nn.Linear | None = None
        self._sharding: Sharding | None = None

    def build(self, policy: nn.Module) -> None:
        """Build the head, which is 0 at first, and the trunk from the initial policy."""
        self.trunk = copied(policy) if self.separate else None
        self.head = nn.Linear(base_model(policy).config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.head.to(next(policy.parameters()).device)
        if self.separate:
            self._freeze_beyond_decoder()

    def shard(self, policy: nn.Module, sharding: Sharding) -> None:
        """Shard its weights."""
        self._sharding = sharding
        sharding.shard_beside(self, trained=True)

    def values(self, batch: MicroBatch, policy_hidden: Tensor) -> Tensor:
        """Predict the value before each supervised token.

        Args:
            batch: A micro-batch.
            policy_hidden: The policy's hidden states that predict the tokens. Shape ``[N, hidden]``.

        Returns:
            float32, carries the gradient. Shape ``[N]``.
        """
        return self._sharding.forward_beside(self, self._values, batch, policy_hidden)

    def _values(self, batch: MicroBatch, policy_hidden: Tensor) -> Tensor:
        hidden = policy_hidden if self.trunk is None else self._trunk_hidden(batch)
        # Not in 16 bits, which cannot represent relative differences below a hundredth; as for reward models.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype))[:, 0].float()

    def _trunk_hidden(self, batch: MicroBatch) -> Tensor:
        return last_hidden_state(self.trunk, batch.inputs).flatten(0, 1)[batch.source_positions]

    def _freeze_beyond_decoder(self) -> None:
        """Freeze the trunk's vocabulary head: it is not used, and DDP expects a gradient for every trainable tensor."""
        base = base_model(self.trunk)
        used = {id(parameter) for parameter in base.get_decoder().parameters()}
        for parameter in (p for p in base.parameters() if id(p) not in used):
            parameter.requires_grad_(False)
