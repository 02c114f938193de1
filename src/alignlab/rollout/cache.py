"""Keys and values in two levels, a prompt's once and a completion's per row, and the attention over both.

All completions of a prompt look at its keys in one matrix product (Juravsky et al. 2024, arXiv 2402.05099), so a prompt
costs memory and bandwidth once, not once per completion. The newest token of every row is written into the same column,
whatever the row's age: positions are in the keys already, and a row that joined later starts at a later column.

Departures:

1. One softmax over the scores of both levels, where the paper merges two by their normalisers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "shared_prompts"
"""Under which Transformers finds the attention; the cache travels as the keyword ``rollout`` of the model's forward."""

FIRST_COLUMNS = 32
"""Columns to begin with; they double when they are full, so that short completions cost no memory of long ones."""

UNKNOWN = ("s_aux", "position_bias")
"""Keywords by which a layer asks for more than (capped) scaled dot products."""


@dataclass
class Layer:
    """Keys and values of one layer.

    Args:
        prompts: Two tensors of shape ``[P, key-value heads, W, d]``, prompts aligned at their ends.
        rows: Two of shape ``[R, key-value heads, columns, d]``.
    """

    prompts: list[Tensor]
    rows: list[Tensor]


class SharedPromptCache:
    """What the rows of a rollout remember: R completions of P prompts.

    Args:
        device: Of the model.
    """

    def __init__(self, device: torch.device):
        self.layers: list[Layer] = []
        self.visible = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self.owner = torch.zeros(0, dtype=torch.long, device=device)
        self.start = torch.zeros(0, dtype=torch.long, device=device)
        self.column, self.num_columns = -1, FIRST_COLUMNS

    def add_prompts(self, states: Sequence[tuple[Tensor, Tensor]], visible: Tensor) -> None:
        """Add prompts behind those that are there.

        Args:
            states: Keys and values per layer, each ``[p, key-value heads, w, d]``.
            visible: False for padding. Shape ``[p, w]``.
        """
        if not self.layers:
            self.layers = [Layer([_wide(s[:0]) for s in pair], [_wide(s[:0]) for s in pair]) for pair in states]
        width = max(visible.shape[1], self.visible.shape[1])
        self.visible = torch.cat([functional.pad(old, (width - old.shape[1], 0)) for old in (self.visible, visible)])
        for layer, pair in zip(self.layers, states, strict=True):
            both = zip(layer.prompts, map(_wide, pair), strict=True)
            layer.prompts = [torch.cat([_left_padded(old, width), _left_padded(new, width)]) for old, new in both]

    def add_rows(self, owner: Tensor) -> None:
        """Add rows without tokens, which begin with the next token of the others.

        Args:
            owner: Place of each row's prompt; equal ones stand together. Shape ``[r]``.
        """
        self.owner = torch.cat([self.owner, owner])
        self.start = torch.cat([self.start, torch.full_like(owner, self.column + 1)])
        self._rearrange(lambda old: torch.cat([old, _empty(old, len(owner), self.num_columns)]))

    def keep(self, rows: Tensor, prompts: Tensor) -> None:
        """Forget all other rows and prompts, and the columns that no row needs any more.

        Args:
            rows: Ascending places. Shape ``[r]``.
            prompts: Ascending places; the owners of the rows among them. Shape ``[p]``.
        """
        self.owner, self.start = torch.searchsorted(prompts, self.owner[rows]), self.start[rows]
        first = int(self.start.min()) if len(rows) else self.column + 1
        self.start, used = self.start - first, slice(first, self.column + 1)
        self.column -= first
        if len(prompts) < len(self.visible):
            self.visible = self.visible[prompts]
            for layer in self.layers:
                layer.prompts = [states[prompts] for states in layer.prompts]

        def moved(old: Tensor) -> Tensor:
            new = _empty(old, len(rows), self.num_columns)
            torch.index_select(old[:, :, used], 0, rows, out=new[:, :, : self.column + 1])
            return new

        self._rearrange(moved)

    def advance(self) -> "SharedPromptCache":
        """Make room for one more token per row."""
        self.column += 1
        if self.column == self.num_columns:
            self.num_columns *= 2
            self._rearrange(lambda old: torch.cat([old, _empty(old, len(old), old.shape[2])], dim=2))
        self.hidden: dict[int | None, Tensor | None] = {}
        return self

    def _rearrange(self, change) -> None:
        for layer in self.layers:
            layer.rows = [change(states) for states in layer.rows]
        ...
