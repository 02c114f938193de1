"""Truncation: what happens to a row whose longest sequence (prompt and one completion) is over the limit.

    error              raise an error that names the row
    drop               drop the row
    left_prompt        cut the prompt from the left, after BOS; completions are not cut
    right_completion   cut completions from the right; the prompt is not cut

All completions of a group share one prompt and one length limit, so the same cut applies to all of them. Branches of a
completion move with what they continue, and are left out where that is cut. A row is dropped if it still does not fit,
if a completion would lose all its supervised tokens, or if completions that differ would become equal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import NamedTuple

from alignlab.data.settings import Truncation
from alignlab.data.table.counts import Dropped
from alignlab.errors import InputError
from alignlab.types.rows import TokenRow, longest_sequence

MAX_NAMED_ROWS = 5
"""Largest number of rows that an error names."""


class _Piece(NamedTuple):
    """Tokens with their mask and weights; ``fork`` is the number of tokens before a branch, 0 for a prompt."""

    fork: int
    tokens: list[int]
    supervised: list[bool]
    weights: list[float]

    def keep(self, *ranges: slice) -> "_Piece":
        """The piece with some of its tokens."""
        tokens, supervised, weights = ([x for kept in ranges for x in values[kept]] for values in self[1:])
        return _Piece(self.fork, tokens, supervised, weights)


_Group = tuple[_Piece, list[list[_Piece]]]
"""A prompt, and the branches of each completion; most have one."""


class TooLong(InputError):
    """A row that is longer than the limit.

    Args:
        origin: File and line of the row.
        length: Tokens of its longest sequence.
        limit: Maximum tokens of a sequence.
    """

    def __init__(self, origin: str, length: int, limit: int):
        self.origin, self.length, self.limit = origin, length, limit
        super().__init__(
            f"data.max_tokens_per_sequence={limit}",
            f"{origin} has a sequence of {length} tokens",
            f"Type data.max_tokens_per_sequence={length}, or data.truncation=drop, left_prompt or right_completion",
        )

    def __reduce__(self):
        return TooLong, (self.origin, self.length, self.limit)


def sum_up(rows: Sequence[TooLong], num_rows: int) -> InputError:
    """One error for all rows that are too long.

    Args:
        rows: At least one, in their order.
        num_rows: Number of all rows.
    """
    if len(rows) == 1:
        return rows[0]
    longest = max(rows, key=lambda row: row.length)
    first = ", ".join(f"{row.origin} ({row.length} tokens)" for row in rows[:MAX_NAMED_ROWS])
    more = f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
    why = f"{len(rows)} of {num_rows} rows have longer sequences: {first}{more}; the longest is {longest.origin}"
    return InputError(longest.asked, f"{why} with {longest.length}", longest.instead)


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
        raise TooLong(row.origin, length, limit)
    if policy == "drop":
        return Dropped("longer than data.max_tokens_per_sequence", row.origin, len(row.tokens))
    groups = list(_groups(row))
    cut = _row(row, [_CUTS[policy](*group, limit, bos) for group in groups])
    if longest_sequence(cut) > limit or not all(map(_keeps, groups, _groups(cut))):
        return Dropped(f"no room for the loss after data.truncation={policy}", row.origin, len(row.tokens))
    return cut


def _cut_prompt(prompt: _Piece, completions: list[list[_Piece]], limit: int, bos: int | None) -> _Group:
    longest = max((branch.fork + len(branch.tokens) for parts in completions for branch in parts), default=0)
    room = limit - max(longest, len(prompt.tokens)) + len(prompt.tokens)
    head = int(prompt.tokens[:1] == [bos] and room > 1)
    start = max(head, len(prompt.tokens) - max(room, 0) + head)
    kept = prompt.keep(slice(head), slice(start, None))

    def moved(branch: _Piece) -> _Piece:
        return branch._replace(fork=max(branch.fork - start + head, min(branch.fork, head)))

    return kept, [[moved(branch) for branch in parts] for parts in completions]


def _cut_completions(prompt: _Piece, completions: list[list[_Piece]], limit: int, bos: int | None) -> _Group:
    def cut(branch: _Piece) -> _Piece:
        return branch.keep(slice(max(limit - branch.fork, 0)))

    parts = [[cut(branch) for branch in one] for one in completions]
    return prompt, [[first, *(branch for branch in others if any(branch.supervised))] for first, *others in parts]


_CUTS: dict[str, Callable[[_Piece, list[list[_Piece]], int, int | None], _Group]] = {
    "left_prompt": _cut_prompt,
    "right_completion": _cut_completions,
}


def _keeps(before: _Group, after: _Group) -> bool:
    """Whether a cut group keeps a prompt, supervised tokens and distinct completions."""
    return (
        bool(after[0].tokens) == bool(before[0].tokens)
        and all(any(branch.supervised) for parts in after[1] for branch in parts[:1])
        and len(_contents(after)) == len(_contents(before))
    )


def _contents(group: _Group) -> set[tuple[int, ...]]:
    return {tuple(token for branch in parts for token in branch.tokens) for parts in group[1]}


def _groups(row: TokenRow) -> Iterator[_Group]:
    """Yield the pieces of each group."""
    start, number = 0, count()

    def piece(fork: int, length: int) -> _Piece:
        nonlocal start
        start += length
        own = slice(start - length, start)
        return _Piece(fork, row.tokens[own], row.supervised[own], row.weights[own])

    for prompt, *completions in row.groups:
        first = piece(0, prompt)
        parts = [row.branches.get(next(number), [[prompt, length]]) for length in completions]
        yield first, [[piece(*branch) for branch in branches] for branches in parts]


def _row(row: TokenRow, groups: Sequence[_Group]) -> TokenRow:
    pieces = [piece for prompt, completions in groups for piece in (prompt, *chain.from_iterable(completions))]
    completions = [parts for _, completions in groups for parts in completions]
    lengths = [[len(prompt.tokens), *(_length(parts) for parts in parts_of)] for prompt, parts_of in groups]
    return replace(
        row,
        tokens=[token for piece in pieces for token in piece.tokens],
        supervised=[flag for piece in pieces for flag in piece.supervised],
        weights=[weight for piece in pieces for weight in piece.weights],
        groups=lengths,
        branches={
            number: [[branch.fork, len(branch.tokens)] for branch in parts]
            for number, parts in enumerate(completions)
            if len(parts) > 1
        },
    )


def _length(parts: Sequence[_Piece]) -> int:
    return sum(len(branch.tokens) for branch in parts)
