"""Rows of data: what a format makes of a record, and what the tokenizer makes of a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Message = Mapping[str, Any]
"""A chat message: ``role`` and ``content``, and what the template knows beside them (``tool_calls``,
``reasoning_content``, ``name``). ``supervised: False`` takes an assistant turn out of the loss."""


# --- rows: what a format makes of a record, before any tokenizer ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """What every kind of row carries.

    Args:
        origin: Where the row stands, ``file.jsonl:12`` (lines count from 1), for error messages.
        columns: Further columns of the record, JSON values, kept for rewards and metrics (``answer``, ``margin``, …).
    """

    origin: str
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Text(Row):
    """Plain text to pretrain on."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Demonstration(Row):
    """A dialogue to imitate; its assistant turns are supervised."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Preference(Row):
    """One chosen completion against one or more rejected ones; ``scores`` (chosen first) where the data ranks them."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[tuple[Message, ...], ...]
    scores: tuple[float, ...] | None = None
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Unpaired(Row):
    """A completion with a verdict: desirable or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt(Row):
    """A prompt to complete; its ``columns`` feed the rewards."""

    prompt: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None


# --- token rows: what the planner and the collator see ----------------------------------------------------------------


@dataclass(frozen=True)
class TokenRow:
    """One row after tokenisation: its trees laid end to end.

    Args:
        tokens: Token ids of all trees, each a prompt followed by its completions.
        supervised: Per token, whether it is a target of the loss.
        groups: Per tree the lengths ``(prompt, completion, completion, …)``; the prompt may be 0. The lengths of all
            trees sum to ``len(tokens)``.
        origin: Where the row came from.
        columns: Numeric columns by name (``margin``, ``desirable``, ``scores``), for losses: one for the row, or one
            per completion.
        token_columns: Quantities by name with one value per target of the loss (``old_logps``), for losses.
        record: Of a prompt, what rewards are told: ``prompt``, its messages, and ``columns``.
        companion: A second row that goes with this one, without a gradient, for methods that want one.
    """

    tokens: Sequence[int] | Tensor
    supervised: list[bool]
    groups: list[list[int]]
    origin: str
    columns: dict[str, Any] = field(default_factory=dict)
    token_columns: dict[str, Sequence[float] | Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    companion: "TokenRow | None" = None
