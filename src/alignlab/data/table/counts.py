"""Counts of the rows that were kept, cut and dropped, and their limits."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from alignlab.errors import InputError, raise_all
from alignlab.types.rows import TokenRow

BAD = "cannot be tokenised"
"""Reason of a row that ``data.bad_rows=drop`` has dropped."""


@dataclass(frozen=True)
class Dropped:
    """A dropped row.

    Args:
        reason: Why it was dropped; rows dropped for the same reason have the same text.
        origin: Where the row comes from.
        tokens: Number of its tokens; 0 if it could not be tokenised.
        detail: The full error, if there was one.
    """

    reason: str
    origin: str
    tokens: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Counts:
    """Numbers of rows and tokens that were kept, cut and dropped; a cut row is a kept row that lost tokens.

    Args:
        kept_rows: Rows kept for training.
        kept_tokens: Tokens of the kept rows.
        supervised_tokens: Tokens of the kept rows that are targets of the loss.
        cut_rows: Kept rows that were cut.
        cut_tokens: Tokens cut from kept rows.
        dropped_rows: Dropped rows.
        dropped_tokens: Tokens of dropped rows.
        reasons: Number of dropped rows by reason.
        unread: Number of rows with something in a column that no format read, by column.
    """

    kept_rows: int = 0
    kept_tokens: int = 0
    supervised_tokens: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    dropped_rows: int = 0
    dropped_tokens: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: _sum(value, getattr(other, name)) for name, value in vars(self).items()})

    def __str__(self) -> str:
        """The counts in one line."""
        line = (
            f"kept {self.kept_rows:,} rows ({self.kept_tokens:,} tokens, {self.supervised_tokens:,} supervised), "
            f"cut {self.cut_rows:,} rows ({self.cut_tokens:,} tokens), "
            f"dropped {self.dropped_rows:,} rows ({self.dropped_tokens:,} tokens)"
        )
        reasons = "; ".join(f"{count:,} × {reason}" for reason, count in sorted(self.reasons.items()))
        return f"{line}: {reasons}" if reasons else line

    def check(self, max_cut_fraction: float, max_dropped_fraction: float) -> None:
        """Check that not too many rows were cut or dropped.

        Args:
            max_cut_fraction: Largest share of rows that may be cut, 0 to 1.
            max_dropped_fraction: Largest share of rows that may be dropped, 0 to 1.

        Raises:
            InputError: A share is above its limit.
        """
        rows = self.kept_rows + self.dropped_rows
        limits = {"cut": (self.cut_rows, max_cut_fraction), "dropped": (self.dropped_rows, max_dropped_fraction)}
        errors = [
            InputError(
                f"data.max_{what}_fraction={limit}",
                f"{count:,} of {rows:,} rows ({count / rows:.1%}) would be {what}; {self}",
                self._instead(what, count / rows),
            )
            for what, (count, limit) in limits.items()
            if rows and count / rows > limit
        ]
        raise_all(errors)

    def _instead(self, what: str, share: float) -> str:
        """The remedy for too many rows that were cut or dropped."""
        others = f", or type data.max_{what}_fraction={min(1.0, share + 0.01):.2f}" if self.kept_rows else ""
        if what == "dropped" and self.are_bad:
            return f"Correct the rows: data.bad_rows=error says what is wrong with each{others}"
        return f"Raise data.max_tokens_per_sequence or choose another data.truncation{others}"

    @property
    def are_bad(self) -> bool:
        """Whether most of the dropped rows cannot be tokenised, at any length."""
        return 2 * self.reasons.get(BAD, 0) > self.dropped_rows


def _sum(first: int | dict[str, int], second: int | dict[str, int]) -> int | dict[str, int]:
    return first + second if isinstance(first, int) else dict(Counter(first) + Counter(second))


def count(outcome: TokenRow | Dropped, cut_tokens: int = 0, unread: Iterable[str] = ()) -> Counts:
    """Count one row.

    Args:
        outcome: The row's tokens, or the dropped row.
        cut_tokens: Number of tokens that truncation removed from it.
        unread: Columns of the row that hold something and that no format read.
    """
    if isinstance(outcome, Dropped):
        return Counts(dropped_rows=1, dropped_tokens=outcome.tokens, reasons={outcome.reason: 1})
    return Counts(
        kept_rows=1,
        kept_tokens=len(outcome.tokens),
        supervised_tokens=sum(outcome.supervised),
        cut_rows=int(cut_tokens > 0),
        cut_tokens=cut_tokens,
        unread=dict.fromkeys(unread, 1),
    )
