"""Critics: what a policy may expect from each token on."""

import copy

import torch
from torch import Tensor, nn

from alignlab.models.scoring import last_hidden_state
from alignlab.types.adapted import base_model
from alignlab.types.batch import MicroBatch


class Critic(nn.Module):
    """A linear head on hidden states: those of the policy, or of a trunk of its own.

    Args:
        policy: Whole and untrained in this run.
        separate: Take a trained copy of the policy as trunk, else the policy's own hidden states.
    """

    def __init__(self, policy: nn.Module, *, separate: bool):
        super().__init__()
        config = base_model(policy).config.get_text_config()
        self.trunk = copy.deepcopy(policy) if separate else None
        self.head = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)  # nothing is expected before anything is known
        nn.init.zeros_(self.head.bias)
        self.head.to(next(policy.parameters()).device)
        if separate:
            self._freeze_beyond_decoder()

    def _freeze_beyond_decoder(self) -> None:
        """Nothing asks the trunk's vocabulary head, and DDP waits for a gradient of every tensor that trains."""
        base = base_model(self.trunk)
        asked = {id(parameter) for parameter in base.get_decoder().parameters()}
        for parameter in (p for p in base.parameters() if id(p) not in asked):
            parameter.requires_grad_(False)

    def values(self, hidden: Tensor) -> Tensor:
        """Values before the tokens that the hidden states predict.

        Args:
            hidden: Shape ``[N, hidden]``.

        Returns:
            float32, carries the gradient. Shape ``[N]``.
        """
        # As for a reward model's score, 16 bits could not tell apart what differs by less than a hundredth of its size.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype))[:, 0].float()

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Hidden states of the own trunk before the supervised tokens. Shape ``[N, hidden]``."""
        return last_hidden_state(self.trunk, batch.inputs).flatten(0, 1)[batch.source_positions]
