"""Interface of samplers, which use the policy itself or a copy of it in another engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.rollout.completions import Completions
from alignlab.types.rows import TokenRow

if TYPE_CHECKING:
    from alignlab.rollout.vllm.parity import Parity
    from alignlab.rollout.weight_sync import PolicySource


@dataclass(frozen=True, kw_only=True)
class SamplingProgress:
    """Progress of a call of a sampler.

    Args:
        num_ended: Number of completions that have ended.
        num_completions: Number of completions to sample.
        num_tokens: Number of tokens sampled so far.
        max_tokens: Number of tokens to sample if no completion ends before its limit.
        seconds: Time since the sampler was called.
    """

    num_ended: int
    num_completions: int
    num_tokens: int
    max_tokens: int
    seconds: float


OnProgress = Callable[[SamplingProgress], None]


def ignore(progress: SamplingProgress) -> None:
    """Do nothing."""


class Sampler(ABC):
    """Samples completions. With a copy of the policy, it also overrides ``refresh``, ``check_parity`` and ``close``."""

    temperature: float
    """Sampling temperature; 0 for greedy completions."""

    max_completion_tokens: int
    """Maximum number of tokens of a completion."""

    is_exact: bool
    """Whether its log-probs equal those of the training forward in full precision."""

    needs_whole_policy: bool = True
    """Whether the policy must be gathered on every rank for sampling, because each rank samples its own prompts."""

    on_progress: OnProgress = staticmethod(ignore)
    """Called often while completions are sampled, to show the progress; a sampler of your own need not call it."""

    @abstractmethod
    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[TokenRow],
        *,
        num_completions: int,
        stop_tokens: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        generator: Sequence[torch.Generator],
        greedy: bool = False,
    ) -> Completions:
        """Sample completions of this rank's prompts. All ranks must call this.

        Args:
            model: The policy.
            prompts: P rows, no prompt empty.
            num_completions: G, the number of completions per prompt, as ``sizes`` gives it.
            stop_tokens: Tokens that end a completion.
            tokenizer: Tokenizer, for stop strings.
            generator: Random generator of each prompt.
            greedy: Whether to take the most probable tokens instead of sampling.

        Returns:
            G completions per prompt, in the order of the prompts.
        """

    def sizes(self, prompts: Sequence[TokenRow], num_completions: int) -> list[int]:
        """Number of completions that it gives for each prompt; without randomness.

        Args:
            prompts: P rows.
            num_completions: G, the number that is set.
        """
        return [num_completions] * len(prompts)

    def check(self, prompts: Iterable[TokenRow], tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027  (optional)
        """Check the training rows before training.

        Args:
            prompts: All training rows.
            tokenizer: Their tokenizer.

        Raises:
            InputError: It cannot complete one of them.
        """

    def check_context(  # noqa: B027  (optional)
        self, prompts: Iterable[TokenRow], tokenizer: PreTrainedTokenizerBase, num_positions: int
    ) -> None:
        """Check the training rows once the model is known, before training.

        Args:
            prompts: All training rows.
            tokenizer: Their tokenizer.
            num_positions: Maximum tokens of a prompt with a completion, by the model's positions.

        Raises:
            InputError: A prompt with a completion has more, and it cannot end the completion earlier.
        """

    def refresh(self, source: "PolicySource") -> dict[str, float]:
        """Update the copy of the policy before a rollout. All ranks must call this.

        Args:
            source: Gives the weights of the policy.

        Returns:
            Metrics to log.
        """
        return {}

    def check_parity(self, parity: "Parity") -> None:  # noqa: B027  (optional)
        """Warn or raise if the log-probs of the sampler differ from those of the trainer."""

    def close(self) -> None:  # noqa: B027  (optional)
        """Stop what was started, if anything."""
