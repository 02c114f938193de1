"""What came of a prompt: its completions, what they were worth, and how they become rows to learn from."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alignlab.rollout.sampler.completion_buffer import Completion
from alignlab.types.rows import TokenRow


@dataclass
class Group:
    """The completions of a prompt.

    Args:
        prompt: The row of the prompt.
        completions: G of them.
        texts: As rewards read them.
        rewards: By name, NaN where a reward has no opinion. Each of length G.
        totals: Weighted sums of the rewards, NaN where none has an opinion. Length G.
        failed: How many rewards failed. Length G.
        greedy: Rewards of the greedy completion by name, where there is one.
    """

    prompt: TokenRow
    completions: list[Completion]
    texts: list[str]
    rewards: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    greedy: dict[str, float] = field(default_factory=dict)

    @property
    def reward_range(self) -> float:
        """Largest reward above the smallest; 0 where fewer than two are known."""
        known = [total for total in self.totals if total == total]
        return max(known) - min(known) if len(known) > 1 else 0.0

    def finished(self) -> "Group":
        """The same group without completions that were cut."""
        kept = [place for place, completion in enumerate(self.completions) if completion.finished]
        return replace(
            self,
            completions=[self.completions[i] for i in kept],
            texts=[self.texts[i] for i in kept],
            rewards={name: [values[i] for i in kept] for name, values in self.rewards.items()},
            totals=[self.totals[i] for i in kept],
            failed=[count for i, count in enumerate(self.failed) if i in kept],
        )

    def row(self, number: int) -> TokenRow:
        """A tree of the prompt and its completions, every token of which is a target.

        Args:
            number: Of the group in its rollout.
        """
        written = [token for completion in self.completions for token in completion.tokens]
        prompt = self.prompt.tokens
        rewards = {f"reward/{name}": values for name, values in self.rewards.items()}
        rewards |= {f"greedy/{name}": [value] * len(self.totals) for name, value in self.greedy.items()}
        return TokenRow(
            tokens=prompt + written,
            supervised=[False] * len(prompt) + [True] * len(written),
            groups=[[len(prompt), *(len(completion.tokens) for completion in self.completions)]],
            origin=self.prompt.origin,
            columns={"reward": self.totals, "group": [number] * len(self.totals), **rewards},
            token_columns={"sampled_logps": [value for one in self.completions for value in one.logps]},
        )


def split(row: TokenRow, max_tokens: int | None) -> list[TokenRow]:
    """A row as several trees of the same prompt, where one would be too long for a micro-batch.

    Args:
        row: As ``Group.row`` makes it.
        max_tokens: Most tokens of a part; a single completion is never cut. ``None`` leaves the row whole.
    """
    ((prompt, *lengths),) = row.groups
    parts, start = [], 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and (max_tokens is None or prompt + sum(lengths[start : end + 1]) <= max_tokens):
            end += 1
        before, size = sum(lengths[:start]), sum(lengths[start:end])
        parts.append(
            TokenRow(
                tokens=row.tokens[:prompt] + row.tokens[prompt + before : prompt + before + size],
                supervised=[False] * prompt + [True] * size,
                groups=[[prompt, *lengths[start:end]]],
                origin=row.origin,
                columns={name: values[start:end] for name, values in row.columns.items()},
                token_columns={name: values[before : before + size] for name, values in row.token_columns.items()},
            )
        )
        start = end
    return parts


class Rollout:
    """All completions of a rollout side by side, for what is computed over the whole of it.

    Args:
        rows: As ``split`` makes them, with the same numbers in each.
    """

    def __init__(self, rows: Sequence[TokenRow]):
        self.rows = rows
        self.lengths = [length for row in rows for _, *lengths in row.groups for length in lengths]
        self.columns = {name: self._flat("columns", name) for name in rows[0].columns}
        self.token_columns = {name: self._flat("token_columns", name) for name in rows[0].token_columns}
        self.sequence_ids = torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))
        # Groups count from 0 without gaps, whatever was left out.
        self.group_ids = torch.unique_consecutive(self.columns["group"], return_inverse=True)[1]

    def _flat(self, field_name: str, name: str) -> Tensor:
        values = [value for row in self.rows for value in getattr(row, field_name)[name]]
        return torch.tensor(values, dtype=torch.float64)

    def with_columns(self, **columns: Tensor) -> list[TokenRow]:
        """The rows with more numbers per completion, each ``[S]``."""
        return self._with("columns", [len(row.groups[0]) - 1 for row in self.rows], columns)

    def with_token_columns(self, **columns: Tensor) -> list[TokenRow]:
        """The rows with more numbers per token of the completions, each ``[N]``."""
        return self._with("token_columns", [sum(row.supervised) for row in self.rows], columns)

    def _with(self, field_name: str, sizes: list[int], columns: dict[str, Tensor]) -> list[TokenRow]:
        parts = {name: values.split(sizes) for name, values in columns.items()}
        return [
            replace(row, **{field_name: getattr(row, field_name) | {n: p[index].tolist() for n, p in parts.items()}})
            for index, row in enumerate(self.rows)
        ]
