"""Truncation: what happens to a row whose longest sequence (prompt and one completion) is over the limit.

    error              raise an error that names the row
    drop               drop the row
    left_prompt        cut the prompt from the left, after BOS; completions are not cut
    right_completion   cut completions from the right; the prompt is not cut

All completions of a group share one prompt and one length limit, so the same cut applies to all of them. A row is
dropped if it still does not fit, if a completion would lose all its supervised tokens, or if completions that differ
would become equal.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from alignlab.data.table.counts import Dropped
from alignlab.errors import InputError
from alignlab.types.rows import TokenRow

Truncation = Literal["error", "drop", "left_prompt", "right_completion"]

_Piece = tuple[list[int], list[bool]]
_Group = list[_Piece]


def longest_sequence(row: TokenRow) -> int:
    """Number of tokens of a row's longest sequence: a prompt and its longest completion."""
    return max(prompt + max(completions, default=0) for prompt, *completions in row.groups)


def truncate(row: TokenRow, limit: int, policy: Truncation, bos: int | None = None) -> TokenRow | Dropped:
    """Truncate a row to a limit; a row that fits is not changed.

    Args:
        row: Any row but a block of text.
        limit: Maximum tokens of a sequence.
        policy: What to do with a longer row; see the table of this module.
        bos: Id that ``left_prompt`` keeps at the beginning of a prompt that begins with it.

    Raises:
        InputError: The row is too long and the policy is ``error``.
    """
    length = longest_sequence(row)
    if length <= limit:
        return row
    if policy == "error":
        raise InputError(
            f"data.max_tokens_per_sequence={limit}",
            f"{row.origin} has a sequence of {length} tokens",
            f"Type data.max_tokens_per_sequence={length} or more, or "
            "data.truncation=drop, left_prompt or right_completion",
        )
    if policy == "drop":
        return Dropped("longer than data.max_tokens_per_sequence", row.origin, len(row.tokens))
    groups = [_CUTS[policy](group, limit, bos) for group in _groups(row)]
    if not all(_fits(before, after, limit) for before, after in zip(_groups(row), groups, strict=True)):
        return Dropped(f"no room for the loss after data.truncation={policy}", row.origin, len(row.tokens))
    return _row(row, groups)


def _cut_prompt(group: _Group, limit: int, bos: int | None) -> _Group:
    (tokens, supervised), *completions = group
    room = limit - max((len(tokens) for tokens, _ in completions), default=0)
    head = int(tokens[:1] == [bos] and room > 1)
    start = max(head, len(tokens) - max(room, 0) + head)
    return [(tokens[:head] + tokens[start:], supervised[:head] + supervised[start:]), *completions]


def _cut_completions(group: _Group, limit: int, bos: int | None) -> _Group:
    prompt, *completions = group
    room = max(limit - len(prompt[0]), 0)
    return [prompt, *((tokens[:room], supervised[:room]) for tokens, supervised in completions)]


_CUTS: dict[str, Callable[[_Group, int, int | None], _Group]] = {
    "left_prompt": _cut_prompt,
    "right_completion": _cut_completions,
}


def _fits(before: _Group, after: _Group, limit: int) -> bool:
    """Whether a cut group is short enough, and keeps a prompt, supervised tokens and distinct completions."""
    (prompt, _), *completions = after
    contents = {tuple(tokens) for tokens, _ in completions}
    return (
        len(prompt) + max(map(len, contents), default=0) <= limit
        and bool(prompt) == bool(before[0][0])
        and all(any(supervised) for _, supervised in completions)
        and len(contents) == len({tuple(tokens) for tokens, _ in before[1:]})
    )


def _groups(row: TokenRow) -> Iterator[_Group]:
    """Yield the pieces of each group: the prompt, then its completions."""
    start = 0
    for lengths in row.groups:
        group = []
        for length in lengths:
            group.append((row.tokens[start : start + length], row.supervised[start : start + length]))
            start += length
        yield group


def _row(row: TokenRow, groups: list[_Group]) -> TokenRow:
    pieces = [piece for group in groups for piece in group]
    return replace(
        row,
        tokens=[token for tokens, _ in pieces for token in tokens],
        supervised=[flag for _, supervised in pieces for flag in supervised],
        groups=[[len(tokens) for tokens, _ in group] for group in groups],
    )
