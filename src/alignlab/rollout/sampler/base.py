"""What a rollout asks of a sampler, whether it draws from the weights in training or from a copy elsewhere."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.rollout.completions import Completions

if TYPE_CHECKING:
    from alignlab.rollout.vllm.parity import Parity
    from alignlab.rollout.weight_sync import PolicySource


class Sampler(ABC):
    """Draws completions. One that holds a copy of the policy also overrides ``refresh``, ``judge`` and ``close``."""

    temperature: float
    """Of the sampling; 0 takes the most probable token."""

    max_completion_tokens: int
    """Most tokens of a completion."""

    is_exact: bool
    """Whether its log-probabilities are those of the training forward, where that computes in full precision."""

    needs_whole_policy: bool = True
    """Whether all weights of the policy must be on every rank while it draws."""

    @abstractmethod
    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        num_completions: int,
        stop_tokens: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        generator: Sequence[torch.Generator],
        greedy: bool = False,
    ) -> Completions:
        """Draw completions of this rank's prompts; every rank calls it.

        Args:
            model: The policy.
            prompts: P token lists, none empty.
            num_completions: G.
            stop_tokens: Tokens that end a completion.
            tokenizer: For stop strings.
            generator: Source of randomness of each prompt.
            greedy: Write the most probable tokens instead.

        Returns:
            G completions per prompt, in the order of the prompts.
        """

    def refresh(self, source: "PolicySource") -> dict[str, float]:
        """Take over the policy's weights as they are now; every rank calls it before a rollout.

        Args:
            source: Gives the weights.

        Returns:
            What is logged.
        """
        return {}

    def judge(self, parity: "Parity") -> None:  # noqa: B027  (optional)
        """Warn of samples whose log-probabilities are not the trainer's, or raise."""

    def close(self) -> None:  # noqa: B027  (optional)
        """End what was started; harmless where nothing was."""
