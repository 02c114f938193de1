"""Prompts paired with completions of other rows, which KTO needs to estimate the KL to the reference."""

from dataclasses import replace
from functools import cached_property

from alignlab.data.table.table import TokenTable, View
from alignlab.types.rows import TokenRow


class WithMismatched(View):
    """Rows with their mismatched row: the same prompt with the completion of the next row that has another prompt.

    After the last row comes the first. The pairs depend on the table alone, not on how steps are cut or shuffled. If
    all rows have the same prompt, it is the next row.

    Args:
        table: Rows of one group with one completion each.
        max_tokens: Maximum tokens of a mismatched row; a longer completion is cut.
    """

    def __init__(self, table: TokenTable | View, max_tokens: int):
        super().__init__(table)
        self.max_tokens = max_tokens

    def __getitem__(self, index: int) -> TokenRow:
        row = self.table[index]
        return replace(row, mismatched=mismatch(row, self.table[self._partners[index]], self.max_tokens))

    @cached_property
    def _partners(self) -> list[int]:
        """For each row the next one with another prompt."""
        prompts = [_prompt_key(row) for row in self.table]
        partners = [(index + 1) % len(prompts) for index in range(len(prompts))]
        if len(set(prompts)) > 1:
            for index in (*reversed(range(len(prompts))), *reversed(range(len(prompts)))):  # the last need the first
                if prompts[partners[index]] == prompts[index]:
                    partners[index] = partners[(index + 1) % len(prompts)]
        return partners


def _prompt_key(row: TokenRow) -> int:
    ((prompt, _),) = row.groups
    return hash(tuple(row.tokens[:prompt]))


def mismatch(row: TokenRow, other: TokenRow, max_tokens: int) -> TokenRow:
    """Combine the prompt of a row with the completion of another, or with its first branch.

    Args:
        row: A row of one group with one completion.
        other: Another such row.
        max_tokens: Maximum tokens of the result; at least one token of the completion is kept.
    """
    ((prompt, _),), ((other_prompt, completion),) = row.groups, other.groups
    length = other.branches[0][0][1] if other.branches else completion
    kept = slice(other_prompt, other_prompt + min(length, max(1, max_tokens - prompt)))
    tokens, supervised = other.tokens[kept], other.supervised[kept]
    if not any(supervised):
        supervised = [True] * len(tokens)  # the cut removed every target
    return replace(
        row,
        tokens=row.tokens[:prompt] + tokens,
        supervised=[False] * prompt + supervised,
        groups=[[prompt, len(tokens)]],
        branches={},
    )
