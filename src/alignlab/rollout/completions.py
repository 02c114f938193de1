"""Completions as samplers return them: flat tensors over all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Completion(NamedTuple):
    """One completion as Python lists, as a server returns it.

    Args:
        tokens: Token ids, including the stop token.
        logps: Log-probs of the tokens, as in ``Completions``.
        finished: Whether it ended with a stop token or stop string; otherwise it was truncated.
    """

    tokens: list[int]
    logps: list[float]
    finished: bool


@dataclass(frozen=True)
class Completions:
    """Completions of several prompts, in the order of the prompts, on the CPU.

    Args:
        tokens: Token ids of all completions, concatenated, including stop tokens. Shape ``[N]``, int64.
        logps: Log-probs of the tokens at the sampling temperature (at 1 for greedy completions), before repetition
            penalty, top-k, top-p and min-p, as ``token_scores`` computes them in training. Shape ``[N]``.
        lengths: Number of tokens of each completion. Shape ``[S]``, int64.
        finished: Whether it ended with a stop token or stop string; otherwise it was truncated. Shape ``[S]``, bool.
    """

    tokens: Tensor
    logps: Tensor
    lengths: Tensor
    finished: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> "Completions":
        """Make tensors of completions in Python lists."""
        return cls(
            tokens=torch.tensor([token for one in completions for token in one.tokens], dtype=torch.long),
            logps=torch.tensor([value for one in completions for value in one.logps], dtype=torch.float32),
            lengths=torch.tensor([len(one.tokens) for one in completions], dtype=torch.long),
            finished=torch.tensor([one.finished for one in completions], dtype=torch.bool),
        )

    def plain(self) -> list[Completion]:
        """Each completion as Python lists."""
        sizes = self.lengths.tolist()
        fields = zip(self.tokens.split(sizes), self.logps.split(sizes), self.finished.tolist(), strict=True)
        return [Completion(tokens.tolist(), logps.tolist(), finished) for tokens, logps, finished in fields]

    def token_lists(self) -> list[list[int]]:
        """Token ids of each completion."""
        return [tokens.tolist() for tokens in self.tokens.split(self.lengths.tolist())]
