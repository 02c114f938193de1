"""Prompts with completions of other rows: what a method needs that asks how likely *any* completion is."""

from dataclasses import replace

from alignlab.data.table.table import TokenTable, View
from alignlab.types.rows import TokenRow


class WithCompanions(View):
    """Rows that each carry their prompt with the completion of the next row (the last row that of the first).

    Which rows meet is settled by the table alone, so it does not depend on how steps are cut or shuffled.

    Args:
        table: Rows of one tree with one completion each.
        max_tokens: Most tokens of a prompt with a completion; a completion that is too long there is cut.
    """

    def __init__(self, table: TokenTable | View, max_tokens: int):
        super().__init__(table)
        self.max_tokens = max_tokens

    def __getitem__(self, index: int) -> TokenRow:
        row = self.table[index]
        return replace(row, companion=mismatch(row, self.table[(index + 1) % len(self.table)], self.max_tokens))


def mismatch(row: TokenRow, other: TokenRow, max_tokens: int) -> TokenRow:
    """The prompt of a row with the completion of another.

    Args:
        row: One tree with one completion.
        other: Likewise.
        max_tokens: Most tokens of the result; at least one of the completion is kept.
    """
    ((prompt, _),), ((other_prompt, _),) = row.groups, other.groups
    kept = slice(other_prompt, other_prompt + max(1, max_tokens - prompt))
    completion, supervised = other.tokens[kept], other.supervised[kept]
    if not any(supervised):
        supervised = [True] * len(completion)  # cut before its first target: the likelihood of something must be asked
    return replace(
        row,
        tokens=row.tokens[:prompt] + completion,
        supervised=[False] * prompt + supervised,
        groups=[[prompt, len(completion)]],
    )
