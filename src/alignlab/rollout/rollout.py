"""A rollout: completions of prompts with their rewards, scores and advantages, as flat tensors."""

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
    """Completions in the order of their prompts; all tensors on the CPU.

    Args:
        prompts: P rows without completions.
        prompt_index: Prompt of each completion, ascending. Shape ``[S]``.
        completions: S completions of N tokens.
        columns: Values of completions by name: ``reward`` (weighted sum), ``reward/NAME``, ``greedy/NAME``,
            ``num_failed_rewards``, ``advantages``. NaN where a value is missing. Each ``[S]``, float64.
        token_columns: Values of tokens by name: ``sampled_logps``, ``old_logps``, ``reference_logps``, ``entropies``,
            ``values``, ``returns``, ``advantages``. Each ``[N]``, float64.
        metrics: Further metrics to log.
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
        """Group of each completion, numbered from 0 without gaps, also after filtering. Shape ``[S]``."""
        return torch.unique_consecutive(self.prompt_index, return_inverse=True)[1]

    def with_columns(self, **columns: Tensor) -> "Rollout":
        """Add columns of completions, each ``[S]``."""
        return replace(self, columns=self.columns | columns)

    def with_token_columns(self, **columns: Tensor) -> "Rollout":
        """Add columns of tokens, each ``[N]``."""
        return replace(self, token_columns=self.token_columns | columns)

    def with_metrics(self, **metrics: float) -> "Rollout":
        """Add metrics to log."""
        return replace(self, metrics=self.metrics | metrics)

    def keep(self, kept: Tensor) -> "Rollout":
        """Select completions.

        Args:
            kept: Mask of the completions to keep. Shape ``[S]``, bool.
        """
        kept_tokens, all_ = kept[self.sequence_ids], self.completions
        return replace(
            self,
            prompt_index=self.prompt_index[kept],
            completions=Completions(
                all_.tokens[kept_tokens], all_.logps[kept_tokens], all_.lengths[kept], all_.finished[kept]
            ),
            columns={name: values[kept] for name, values in self.columns.items()},
            token_columns={name: values[kept_tokens] for name, values in self.token_columns.items()},
        )

    def concatenate(self, other: "Rollout") -> "Rollout":
        """Concatenate two rollouts with the same columns."""
        one, two = self.completions, other.completions
        fields = {name: torch.cat([getattr(one, name), getattr(two, name)]) for name in vars(one)}
        return Rollout(
            prompts=[*self.prompts, *other.prompts],
            prompt_index=torch.cat([self.prompt_index, other.prompt_index + len(self.prompts)]),
            completions=Completions(**fields),
            columns=_joined(self.columns, other.columns),
            token_columns=_joined(self.token_columns, other.token_columns),
            metrics=self.metrics | other.metrics,
        )

    def rows(self, max_tokens: int | None) -> list[TokenRow]:
        """Make rows, each a prompt with some of its completions, of which every token is supervised.

        Args:
            max_tokens: Maximum number of tokens of a row; further completions of the prompt go to another row. A single
                completion is never cut. ``None`` gives one row per prompt.
        """
        offsets = [0, *self.completions.lengths.cumsum(0).tolist()]
        prompts, index = [torch.tensor(row.tokens) for row in self.prompts], self.prompt_index.tolist()
        found = []
        for first, last in self._row_bounds(max_tokens):
            prompt, tokens = index[first], slice(offsets[first], offsets[last])
            completions = self.completions.tokens[tokens]
            found.append(
                TokenRow(
                    tokens=torch.cat([prompts[prompt], completions]),
                    supervised=[False] * len(prompts[prompt]) + [True] * len(completions),
                    groups=[[len(prompts[prompt]), *self.completions.lengths[first:last].tolist()]],
                    origin=self.prompts[prompt].origin,
                    columns={name: values[first:last] for name, values in self.columns.items()},
                    token_columns={name: values[tokens] for name, values in self.token_columns.items()},
                )
            )
        return found

    def _row_bounds(self, max_tokens: int | None) -> Iterator[tuple[int, int]]:
        """Start and end index of the completions of each row."""
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
