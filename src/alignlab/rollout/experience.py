"""What came of a prompt: its completions, what they were worth, and how they become a row to learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignlab.batches import TokenRow
from alignlab.rollout.ledger import Completion


@dataclass
class Group:
    """The completions of a prompt.

    Args:
        prompt: The row of the prompt.
        completions: G of them.
        texts: As rewards read them.
        rewards: By name, NaN where a reward has no opinion. Each of length G.
        totals: Weighted sums of the rewards, NaN where none has an opinion. Length G.
    """

    prompt: TokenRow
    completions: list[Completion]
    texts: list[str]
    rewards: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)

    @property
    def spread(self) -> float:
        """Largest reward above the smallest; 0 where fewer than two are known."""
        known = [total for total in self.totals if total == total]
        return max(known) - min(known) if len(known) > 1 else 0.0

    def only(self, places: Sequence[int]) -> "Group":
        """The same group with some of its completions."""
        return Group(
            self.prompt,
            [self.completions[i] for i in places],
            [self.texts[i] for i in places],
            {name: [values[i] for i in places] for name, values in self.rewards.items()},
            [self.totals[i] for i in places],
        )

    def row(self, numbers: Mapping[str, list[float]], token_numbers: Mapping[str, list[float]]) -> TokenRow:
        """A tree of the prompt and its completions, every token of which is a target.

        Args:
            numbers: One value per completion.
            token_numbers: One value per token of all completions.
        """
        written = [token for completion in self.completions for token in completion.tokens]
        prompt = self.prompt.tokens
        return TokenRow(
            tokens=prompt + written,
            supervised=[False] * len(prompt) + [True] * len(written),
            trees=[[len(prompt), *(len(completion.tokens) for completion in self.completions)]],
            origin=self.prompt.origin,
            numbers=dict(numbers),
            token_numbers=dict(token_numbers),
        )


def split(row: TokenRow, max_tokens: int | None) -> list[TokenRow]:
    """A row as several trees of the same prompt, where one would be too long for a micro-batch.

    Args:
        row: One tree, whose numbers are per completion and whose token numbers are per token of all completions.
        max_tokens: Most tokens of a part; a single completion is never cut. ``None`` leaves the row whole.
    """
    ((prompt, *lengths),) = row.trees
    if max_tokens is None or len(row.tokens) <= max_tokens:
        return [row]
    parts, start = [], 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and prompt + sum(lengths[start : end + 1]) <= max_tokens:
            end += 1
        before, size = sum(lengths[:start]), sum(lengths[start:end])
        parts.append(
            TokenRow(
                tokens=row.tokens[:prompt] + row.tokens[prompt + before : prompt + before + size],
                supervised=[False] * prompt + [True] * size,
                trees=[[prompt, *lengths[start:end]]],
                origin=row.origin,
                numbers={name: values[start:end] for name, values in row.numbers.items()},
                token_numbers={name: values[before : before + size] for name, values in row.token_numbers.items()},
            )
        )
        start = end
    return parts
