"""The critic (value model) of PPO: predicts the return from each token on.

| ``method.critic`` | what it is | its head at first |
|---|---|---|
| ``shared`` | a head on the policy's hidden states | 0 |
| ``separate`` | a trained copy of the initial policy | 0 |
| a path | a reward model, trained further (arXiv 2203.02155, section 3.5) | the head of the reward model |
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from alignlab.distributed.strategies import Sharding
from alignlab.errors import InputError
from alignlab.models.compiled import copied
from alignlab.models.component import Component
from alignlab.models.load import refuse_damaged
from alignlab.models.reward import context_of, find_reward_model
from alignlab.models.scoring import last_hidden_state
from alignlab.types.adapted import base_model, is_adapted
from alignlab.types.batch import MicroBatch

INSTEAD = "Name a run of method=reward_model that started from the policy's model, or type method.critic=separate"

OF_POLICY = ("shared", "separate")
"""Critics that start from the policy; any other word is the path of a reward model."""


class Critic(Component):
    """A linear value head on the hidden states of the policy, or of a separate trunk.

    Args:
        kind: ``shared``, ``separate``, or the path of a reward model.
        lr_factor: Its learning rate divided by that of the policy.
        open_reward_model: Loads a reward model from a path.

    Raises:
        InputError: There is no undamaged reward model at the path.
    """

    is_trained = True

    def __init__(self, kind: str, lr_factor: float, open_reward_model: Callable[[str], nn.Module]):
        super().__init__()
        if kind not in OF_POLICY:
            refuse_damaged(find_reward_model(kind, f"method.critic={kind}", INSTEAD))
        self.kind, self.lr_factor, self.open_reward_model = kind, lr_factor, open_reward_model
        self.trunk: nn.Module | None = None
        self.head: nn.Linear | None = None
        self._sharding: Sharding | None = None

    def build(self, policy: nn.Module) -> None:
        """Make the trunk and the head.

        Raises:
            InputError: The reward model does not fit the policy.
        """
        self.trunk = None if self.kind == "shared" else self._trunk_of(policy)
        base = base_model(policy if self.trunk is None else self.trunk)
        self.head = nn.Linear(base.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if self.kind not in OF_POLICY:
            with torch.no_grad():
                self.head.weight.copy_(base.score.weight)
        self.head.to(next(policy.parameters()).device)
        if self.trunk is not None:
            self._freeze_beyond_decoder()

    def _trunk_of(self, policy: nn.Module) -> nn.Module:
        if self.kind in OF_POLICY:
            return copied(policy)
        model = self.open_reward_model(self.kind)
        own, needed = context_of(model), context_of(policy)
        if own is not None and (needed is None or own < needed):
            why = f"it has {own} positions, and the policy has {needed or 'no limit'}"
            raise InputError(f"method.critic={self.kind}", why, INSTEAD)
        if not is_adapted(model):  # parts that an adapter was merged into are frozen
            model.requires_grad_(True)
        return model.train()

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
        """Freeze the trunk's own head: it is not used, and DDP expects a gradient for every trainable tensor."""
        base = base_model(self.trunk)
        used = {id(parameter) for parameter in base.get_decoder().parameters()}
        for parameter in (p for p in base.parameters() if id(p) not in used):
            parameter.requires_grad_(False)
