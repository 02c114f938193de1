"""Completions as samplers return them: tensors side by side, from the sampler to the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Completion(NamedTuple):
    """One completion in plain containers, as a server answers.

    Args:
        tokens: Token ids, a stop token included.
        logps: Their log-probabilities, as in ``Completions``.
        finished: Whether it stopped by itself; else it was cut at the most tokens.
    """

    tokens: list[int]
    logps: list[float]
    finished: bool


@dataclass(frozen=True)
class Completions:
    """Completions of several prompts, those of a prompt next to each other, on the CPU.

    Args:
        tokens: Token ids of all completions one after the other, stop tokens included. Shape ``[N]``, int64.
        logps: Their log-probabilities under the whole distribution at the temperature of the sampling (at 1 for greedy
            completions), before penalty and truncation: what ``token_scores`` gives them in training. Shape ``[N]``.
        lengths: Tokens of each completion. Shape ``[S]``, int64.
        finished: Whether it stopped by itself; else it was cut at the most tokens. Shape ``[S]``, bool.
    """

    tokens: Tensor
    logps: Tensor
    lengths: Tensor
    finished: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> "Completions":
        """Completions in plain containers, side by side."""
        return cls(
            tokens=torch.tensor([token for one in completions for token in one.tokens], dtype=torch.long),
            logps=torch.tensor([value for one in completions for value in one.logps], dtype=torch.float32),
            lengths=torch.tensor([len(one.tokens) for one in completions], dtype=torch.long),
            finished=torch.tensor([one.finished for one in completions], dtype=torch.bool),
        )

    def plain(self) -> list[Completion]:
        """Each completion in plain containers."""
        sizes = self.lengths.tolist()
        pieces = zip(self.tokens.split(sizes), self.logps.split(sizes), self.finished.tolist(), strict=True)
        return [Completion(tokens.tolist(), logps.tolist(), finished) for tokens, logps, finished in pieces]

    def token_lists(self) -> list[list[int]]:
        """Token ids of each completion."""
        return [tokens.tolist() for tokens in self.tokens.split(self.lengths.tolist())]
