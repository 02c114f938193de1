"""Completions of the data instead of samples: ``rollout=data``, for rows of the format ``scored``.

A text is encoded as it is, and the end token of the tokenizer follows. Token ids are taken as they are. The ratio of a
policy loss is to the policy before the update, whose log-probs are computed; log-probs of the data are those of another
sampler, as of a separate engine.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignlab.errors import InputError
from alignlab.rollout.completions import Completion, Completions
from alignlab.rollout.sampler.base import Sampler
from alignlab.types.rows import TokenRow

INSTEAD = "Give each row a prompt, completions and rewards (data.format=scored), or type rollout=hf"


class GivenCompletions(Sampler):
    """Gives all completions that a row holds in its column ``completions``.

    Args:
        temperature: Temperature at which they were sampled; the policy is scored at it.
        max_completion_tokens: Maximum number of tokens of a completion; longer ones are refused.
    """

    is_exact = False
    needs_whole_policy = False

    def __init__(
        self, *, temperature: Annotated[float, Field(gt=0)], max_completion_tokens: Annotated[int, Field(ge=1)]
    ):
        self.temperature, self.max_completion_tokens = temperature, max_completion_tokens

    def sizes(self, prompts: Sequence[TokenRow], num_completions: int) -> list[int]:
        """Number of completions of each row; ``num_completions`` has no effect."""
        return [len(row.record["columns"]["completions"]) for row in prompts]

    def check(self, prompts: Iterable[TokenRow], tokenizer: PreTrainedTokenizerBase) -> None:
        """Check the completions of all rows.

        Raises:
            InputError: A row has none, or one that is too long or has an id that the tokenizer lacks.
        """
        for row in prompts:
            if "completions" not in row.record["columns"]:
                raise InputError(f"rollout=data with {row.origin}", "the row has no completions", INSTEAD)
            for index, one in enumerate(self._completions(row, (), tokenizer)):
                self._check_tokens(f"{row.origin}: completions[{index}]", one.tokens, len(tokenizer))

    def check_context(
        self, prompts: Iterable[TokenRow], tokenizer: PreTrainedTokenizerBase, num_positions: int
    ) -> None:
        """Check that every completion ends within the model's positions.

        Raises:
            InputError: A prompt with a completion has more tokens.
        """
        near = (row for row in prompts if len(row.tokens) + self.max_completion_tokens > num_positions)
        for row in near:
            for index, one in enumerate(self._completions(row, (), tokenizer)):
                length = len(row.tokens) + len(one.tokens)
                if length > num_positions:
                    why = f"with its prompt it has {length} tokens, and the model has {num_positions} positions"
                    instead = "Shorten it or leave it out, or choose a model with more positions"
                    raise InputError(f"{row.origin}: completions[{index}]", why, instead)

    def _check_tokens(self, asked: str, tokens: Sequence[int], num_ids: int) -> None:
        if len(tokens) > self.max_completion_tokens:
            why = f"it has {len(tokens)} tokens, and rollout.max_completion_tokens={self.max_completion_tokens}"
            raise InputError(asked, why, f"Type rollout.max_completion_tokens={len(tokens)}, or leave it out")
        if outside := [token for token in tokens if not 0 <= token < num_ids]:
            why = f"it holds the token {outside[0]}, and the tokenizer has {num_ids}"
            raise InputError(asked, why, "Take the model whose tokenizer made the tokens, or give texts")

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
        """All completions of the rows; log-probs that the data does not give are NaN. See ``Sampler``."""
        return Completions.of([one for row in prompts for one in self._completions(row, stop_tokens, tokenizer)])

    @staticmethod
    def _completions(row: TokenRow, stop_tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Completion]:
        columns: dict[str, Any] = row.record["columns"]
        given = [_tokens(one, tokenizer) for one in columns["completions"]]
        logps = columns.get("logps") or [[math.nan] * len(tokens) for tokens in given]
        ends = {*stop_tokens, tokenizer.eos_token_id}
        return [Completion(one, found, one[-1] in ends) for one, found in zip(given, logps, strict=True)]


def _tokens(completion: str | list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(completion, str):
        return [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]
    return completion
