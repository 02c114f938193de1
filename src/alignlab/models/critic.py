"""Critics: predict the return of a policy from each token on."""

import copy

import torch
from torch import Tensor, nn

from alignlab.models.scoring import last_hidden_state
from alignlab.types.adapted import base_model
from alignlab.types.batch import MicroBatch


class Critic(nn.Module):
    """A linear head on hidden states, those of the policy or of a separate trunk.

    Args:
        policy: Not sharded, and not yet trained in this run.
        separate: Train a copy of the policy as trunk instead of using the policy's hidden states.
    """

    def __init__(self, policy: nn.Module, *, separate: bool):
        super().__init__()
        config = base_model(policy).config.get_text_config()
        self.trunk = copy.deepcopy(policy) if separate else None
        self.head = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)  # a random head would add noise to the first advantages
        nn.init.zeros_(self.head.bias)
        self.head.to(next(policy.parameters()).device)
        if separate:
            self._freeze_beyond_decoder()

    def _freeze_beyond_decoder(self) -> None:
        """The trunk's vocabulary head is unused, and DDP waits for a gradient of every trainable tensor."""
        base = base_model(self.trunk)
        used = {id(parameter) for parameter in base.get_decoder().parameters()}
        for parameter in (p for p in base.parameters() if id(p) not in used):
            parameter.requires_grad_(False)

    def values(self, hidden: Tensor) -> Tensor:
        """Values before the tokens that the hidden states predict.

        Args:
            hidden: Hidden states at the source positions. Shape ``[N, hidden]``.

        Returns:
            float32, carries the gradient. Shape ``[N]``.
        """
        # As for a reward model's score, 16 bits cannot represent relative differences below about a hundredth.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype))[:, 0].float()

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Hidden states of the separate trunk at the source positions of the batch. Shape ``[N, hidden]``."""
        return last_hidden_state(self.trunk, batch.inputs).flatten(0, 1)[batch.source_positions]
