"""A rollout: completions to prompts with all that is known of them, as tensors, and the rows that it becomes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from alignlab.rollout.completions import Completions
from alignlab.types.rows import TokenRow


@dataclass(frozen=True)
class Rollout:
    """Completions side by side, those to the same prompt next to each other; all tensors on the CPU.

    Args:
        prompts: P rows without completions.
        prompt_index: Prompt of each completion, ascending. Shape ``[S]``.
        completions: S completions of N tokens.
        columns: Values of completions by name: ``reward`` (weighted sum), ``reward/NAME``, ``greedy/NAME``,
            ``num_failed_rewards``, ``advantages``. NaN where there is none. Each ``[S]``, float64.
        token_columns: Values of tokens by name: ``sampled_logps``, ``old_logps``, ``reference_logps``, ``entropies``,
            ``values``, ``returns``, ``advantages``. Each ``[N]``, float64.
        metrics: What is logged of it.
    """

    prompts: Sequence[TokenRow]
    prompt_index: Tensor
    completions: Completions
    columns: dict[str, Tensor] = field(default_factory=dict)
    token_columns: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.completions)

    @cached_property
    def sequence_ids(self) -> Tensor:
        """Completion of each token. Shape ``[N]``."""
        return torch.repeat_interleave(torch.arange(len(self)), self.completions.lengths)

    @cached_property
    def group_ids(self) -> Tensor:
        """Group of each completion, counted from 0 without gaps, whatever was left out. Shape ``[S]``."""
        return torch.unique_consecutive(self.prompt_index, return_inverse=True)[1]

    def with_columns(self, **columns: Tensor) -> "Rollout":
        """The same with more values of completions, each ``[S]``."""
        return replace(self, columns=self.columns | columns)

    def with_token_columns(self, **columns: Tensor) -> "Rollout":
        """The same with more values of tokens, each ``[N]``."""
        return replace(self, token_columns=self.token_columns | columns)

    def with_metrics(self, **metrics: float) -> "Rollout":
        """The same with more to log."""
        return replace(self, metrics=self.metrics | metrics)

    def keep(self, kept: Tensor) -> "Rollout":
        """Some of the completions.

        Args:
            kept: Shape ``[S]``, bool.
        """
        tokens, of = kept[self.sequence_ids], self.completions
        return replace(
            self,
            prompt_index=self.prompt_index[kept],
            completions=Completions(of.tokens[tokens], of.logps[tokens], of.lengths[kept], of.finished[kept]),
            columns={name: values[kept] for name, values in self.columns.items()},
            token_columns={name: values[tokens] for name, values in self.token_columns.items()},
        )

    def joined(self, other: "Rollout") -> "Rollout":
        """The completions of both; they have the same columns."""
        one, two = self.completions, other.completions
        parts = {name: torch.cat([getattr(one, name), getattr(two, name)]) for name in vars(one)}
        return Rollout(
            prompts=[*self.prompts, *other.prompts],
            prompt_index=torch.cat([self.prompt_index, other.prompt_index + len(self.prompts)]),
            completions=Completions(**parts),
            columns=_joined(self.columns, other.columns),
            token_columns=_joined(self.token_columns, other.token_columns),
            metrics=self.metrics | other.metrics,
        )

    def rows(self, max_tokens: int | None) -> list[TokenRow]:
        """Rows to learn from: each a prompt with some of its completions, every token of which is a target.

        Args:
            max_tokens: Most tokens of a row; completions of the same prompt beyond them become another row, and a
                single completion is never cut. ``None``: one row per prompt.
        """
        offsets = [0, *self.completions.lengths.cumsum(0).tolist()]
        prompts, index = [torch.tensor(row.tokens) for row in self.prompts], self.prompt_index.tolist()
        found = []
        for first, last in self._cuts(max_tokens):
            prompt, tokens = index[first], slice(offsets[first], offsets[last])
            written = self.completions.tokens[tokens]
            found.append(
                TokenRow(
                    tokens=torch.cat([prompts[prompt], written]),
                    supervised=[False] * len(prompts[prompt]) + [True] * len(written),
                    groups=[[len(prompts[prompt]), *self.completions.lengths[first:last].tolist()]],
                    origin=self.prompts[prompt].origin,
                    columns={name: values[first:last] for name, values in self.columns.items()},
                    token_columns={name: values[tokens] for name, values in self.token_columns.items()},
                )
            )
        return found

    def _cuts(self, max_tokens: int | None) -> Iterator[tuple[int, int]]:
        """First and last completion of each row."""
        lengths, index = self.completions.lengths.tolist(), self.prompt_index.tolist()
        starts = [i for i in range(len(index)) if i == 0 or index[i] != index[i - 1]]
        for start, end in pairwise([*starts, len(index)]):
            first, size = start, len(self.prompts[index[start]].tokens)
            total = size
            for i in range(start, end):
                if max_tokens is not None and i > first and total + lengths[i] > max_tokens:
                    yield first, i
                    first, total = i, size
                total += lengths[i]
            yield first, end


def _joined(one: dict[str, Tensor], two: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([values, two[name]]) for name, values in one.items()}
