"""Rows of data before and after tokenisation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from alignlab.types.layout import find_paths

Message = Mapping[str, Any]
"""A chat message: ``role``, ``content`` and further keys that the template uses (``tool_calls``,
``reasoning_content``, ``name``). ``supervised: False`` excludes an assistant turn from the loss, and ``weight`` weighs
it there. ``prefix`` is the beginning of an assistant's content that is given, and not supervised; a prompt may end in a
message that is all prefix, which the model continues."""


# --- rows: the output of a format, before any tokenizer ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """Fields that every kind of row has.

    Args:
        origin: File and line of the row, ``file.jsonl:12`` (lines count from 1), for error messages.
        columns: Further columns of the record, JSON values, kept for rewards and metrics (``answer``, ``margin``, …).
        unread: Names of those that the format of the record did not read, and that hold something.
    """

    origin: str
    columns: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, kw_only=True)
class Text(Row):
    """Plain text to pretrain on."""

    text: str


@dataclass(frozen=True, kw_only=True)
class WholeText(Row):
    """Plain text to fine-tune on, as a row of its own: all of it is supervised."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Encoded(Row):
    """Token ids of a prompt and its completions, the chosen first, with the mask of the loss of each completion."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    supervised: tuple[tuple[bool, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Demonstration(Row):
    """A dialogue to imitate; its assistant turns are supervised."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Preference(Row):
    """One chosen completion and one or more rejected ones, with ``scores`` (chosen first) if the data has them."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[tuple[Message, ...], ...]
    scores: tuple[float, ...] | None = None
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Unpaired(Row):
    """A completion with a label: desirable or not."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Prompt(Row):
    """A prompt to complete; rewards receive its ``columns``."""

    prompt: tuple[Message, ...]
    tools: tuple[Any, ...] | None = None


# --- token rows: the input of the planner and the collator ------------------------------------------------------------


@dataclass(frozen=True)
class TokenRow:
    """One row after tokenisation: its groups concatenated.

    Args:
        tokens: Token ids of all groups, each a prompt followed by its completions.
        supervised: Whether each token is a target of the loss.
        groups: Lengths ``(prompt, completion, completion, …)`` of each group; the prompt may be 0. The lengths of all
            groups sum to ``len(tokens)``.
        origin: File and line of the row.
        columns: Numeric columns by name (``margin``, ``desirable``, ``scores``), for losses: one for the row, or one
            per completion.
        token_columns: Quantities by name with one value per target of the loss (``old_logps``), for losses.
        record: Only for a prompt: what rewards receive, ``prompt`` (its messages) and ``columns``.
        branches: By number of a completion, for those whose turns were answered in different contexts: the tokens
            before each branch, and its length (``types.layout.Branches``).
        weights: Weight of each token in the loss by its turn, 0 if it is not supervised; empty if all others are 1.
        mismatched: The prompt with the completion of another row, without gradient, if the method needs it (KTO).
    """

    tokens: Sequence[int] | Tensor
    supervised: list[bool]
    groups: list[list[int]]
    origin: str
    columns: dict[str, Any] = field(default_factory=dict)
    token_columns: dict[str, Sequence[float] | Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    branches: dict[int, list[list[int]]] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    mismatched: "TokenRow | None" = None


def longest_sequence(row: TokenRow) -> int:
    """Number of tokens of a row's longest sequence: a prompt and its longest completion, or a branch and its context.

    Args:
        row: Any row.
    """
    paths = (path.before + path.length for path in find_paths(row.groups, row.branches))
    return max((*paths, *(prompt for prompt, *_ in row.groups)))
