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

FIRST_COLUMNS = 32
"""Columns to begin with; they double when they are full, so that short completions cost no memory of long ones."""


@dataclass
class Layer:
    """Keys and values of one layer.

    Args:
        prompts: Two tensors ``[P, key-value heads, W, d]``, prompts aligned at their ends.
        rows: Two tensors ``[at least R, key-value heads, at least column + 1, d]``.
    """

    prompts: list[Tensor]
    rows: list[Tensor]


class SharedPromptCache:
    """What a model remembers of R completions of P prompts.

    Args:
        device: Of the model.

    Attributes:
        windows: How far back layers asked to see; ``None`` among them for all.
    """

    def __init__(self, device: torch.device):
        self.layers: list[Layer] = []
        self.visible = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self.owner = torch.zeros(0, dtype=torch.long, device=device)
        self.start = torch.zeros(0, dtype=torch.long, device=device)
        self.column = -1
        self.windows: set[int | None] = set()

    # --- which prompts and rows there are -----------------------------------------------------------------------------

    def add_prompts(self, states: Sequence[tuple[Tensor, Tensor]], visible: Tensor) -> None:
        """Add prompts behind those that are there.

        Args:
            states: Keys and values per layer, each ``[p, key-value heads, w, d]``.
            visible: False for padding. Shape ``[p, w]``.
        """
        if not self.layers:
            none = [[_wide(kind[:0]) for kind in pair] for pair in states]
            self.layers = [Layer(pair, [_resized(kind, 0, FIRST_COLUMNS) for kind in pair]) for pair in none]
        width = max(visible.shape[1], self.visible.shape[1])
        both = (self.visible, visible)
        self.visible = torch.cat([functional.pad(some, (width - some.shape[1], 0)) for some in both])
        for layer, pair in zip(self.layers, states, strict=True):
            both = zip(layer.prompts, map(_wide, pair), strict=True)
            layer.prompts = [torch.cat([_left_padded(old, width), _left_padded(new, width)]) for old, new in both]

    def add_rows(self, owner: Tensor) -> None:
        """Add rows that have no token yet; they begin at the next column.

        Args:
            owner: Place of each row's prompt, not before those of the rows that are there. Ascending, shape ``[r]``.
        """
        before, behind = len(self.owner), len(self.owner) + len(owner)
        self.owner = torch.cat([self.owner, owner])
        self.start = torch.cat([self.start, torch.full_like(owner, self.column + 1)])
        for layer in self.layers:
            capacity, _, num_columns, _ = layer.rows[0].shape
            if behind > capacity:
                layer.rows = [_resized(old, behind, num_columns) for old in layer.rows]
            for states in layer.rows:  # what a mask hides is multiplied by zero, and zero times rubbish may be NaN
                states[before:behind, :, : self.column + 1] = 0
        self._regroup()

    def keep(self, rows: Tensor, prompts: Tensor) -> None:
        """Forget all other rows and prompts, and the columns that no row needs any more.

        Args:
            rows: Places, ascending. Shape ``[r]``.
            prompts: Places, ascending, with those of the rows' owners among them. Shape ``[p]``.
        """
        self.owner, self.start = torch.searchsorted(prompts, self.owner[rows]), self.start[rows]
        first = int(self.start.min()) if len(rows) else self.column + 1
        used = slice(first, self.column + 1)
        self.start, self.column = self.start - first, self.column - first

        for layer in self.layers:
            for states in layer.rows:
                states[: len(rows), :, : self.column + 1] = states[:, :, used][rows]
        if len(prompts) < len(self.visible):
            self.visible = self.visible[prompts]
            for layer in self.layers:
                layer.prompts = [states[prompts] for states in layer.prompts]
        self._regroup()

    def advance(self) -> None:
        """Make room for the next token of every row."""
        self.column += 1
        self.masks: dict[int | None, Tensor | None] = {}
        for layer in self.layers:
            capacity, _, num_columns, _ = layer.rows[0].shape
            if self.column == num_columns:
                layer.rows = [_resized(old, capacity, 2 * num_columns) for old in layer.rows]

    def _regroup(self) -> None:
        """Give every row a place in a grid of P prompts by the largest number of rows of one."""
        sizes = torch.bincount(self.owner, minlength=len(self.visible))
        self.group_size = int(sizes.max())
        rank = torch.arange(len(self.owner), device=sizes.device) - (sizes.cumsum(0) - sizes)[self.owner]
        full = len(self.owner) == len(self.visible) * self.group_size
        self.place = None if full else self.owner * self.group_size + rank
        self.ragged = not bool(self.visible.all()) or bool(self.start.any())

    # --- attention ----------------------------------------------------------------------------------------------------

    def attend(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> Tensor:
        """Remember the newest token of every row and let it look at its prompt and its completion.

        Args:
            index: Of the layer.
            query: Shape ``[R, heads, 1, d]``.
            key: Shape ``[R, key-value heads, 1, d]``.
            value: Like ``key``.
            scaling: Multiplies the scores.
            softcap: Largest absolute score; ``None`` for no limit.
            window: Positions that a token sees, itself included; ``None`` for all.

        Returns:
            Shape ``[R, 1, heads, d]``.
        """
        layer, used = self.layers[index], slice(0, self.column + 1)
        keys, values = (states[: len(query)] for states in layer.rows)
        keys[:, :, self.column], values[:, :, self.column] = key[:, :, 0], value[:, :, 0]
        prompt_keys, prompt_values = layer.prompts
        # Query heads of one key-value head stand side by side, [R, key-value heads, heads of each, d].
        query = query.unflatten(1, (key.shape[1], -1))[:, :, :, 0].to(keys.dtype) * scaling
        shared = self._ungrouped(_product(self._grouped(query), prompt_keys.mT))
        scores = torch.cat([shared, _product(query, keys[:, :, used].mT)], dim=-1)
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        mask = self._mask(window)
        if mask is not None:
            scores.masked_fill_(mask[:, None, None], -torch.inf)
        weights, width = scores.softmax(-1).to(values.dtype), prompt_keys.shape[2]
        seen = self._ungrouped(_product(self._grouped(weights[..., :width]), prompt_values))
        seen = seen + _product(weights[..., width:], values[:, :, used])
        return seen.flatten(1, 2)[:, None].to(value.dtype)

    def _grouped(self, states: Tensor) -> Tensor:
        """Rows ``[R, h, n, d]`` by prompt, ``[P, h, group size * n, d]``."""
        if self.place is not None:
            grid = states.new_zeros(len(self.visible) * self.group_size, *states.shape[1:])
            states = grid.index_copy_(0, self.place, states)
        return states.unflatten(0, (-1, self.group_size)).transpose(1, 2).flatten(2, 3)

    def _ungrouped(self, states: Tensor) -> Tensor:
        """The way back."""
        states = states.unflatten(2, (self.group_size, -1)).transpose(1, 2).flatten(0, 1)
        return states if self.place is None else states[self.place]

    def _mask(self, window: int | None) -> Tensor | None:
        """What each row must not see, prompt and completion side by side. Shape ``[R, W + columns]``, or None."""
        if window is not None and window >= self.visible.shape[1] + self.column + 1:
            window = None
        if window not in self.masks:
            self.masks[window] = self._hidden(window) if self.ragged or window is not None else None
        return self.masks[window]

    def _hidden(self, window: int | None) -> Tensor:
        width, device = self.visible.shape[1], self.owner.device
        prompt = ~self.visible[self.owner]
        columns = torch.arange(self.column + 1, device=device)
        completion = columns < self.start[:, None]
        if window is not None:
            age = self.column - self.start
            prompt = prompt | ((age + width)[:, None] - torch.arange(width, device=device) >= window)
            completion = completion | (self.column - columns >= window)
        return torch.cat([prompt, completion], dim=1)


def _wide(states: Tensor) -> Tensor:
    """float32 where the device has no product of narrow numbers that adds up in float32."""
    return states if states.is_cuda or states.dtype == torch.float64 else states.float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``[n, h, a, b] @ [n, h, b, c]``, in float32 at least: scores rounded to bfloat16 would be off by per cents."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    wide = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
    return wide.unflatten(0, left.shape[:2])


def _resized(states: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """A larger place with the same content; the rest is rubbish."""
    new = states.new_empty(num_rows, states.shape[1], num_columns, states.shape[3])
    new[: len(states), :, : states.shape[2]] = states[:, :, :num_columns]
    return new


def _left_padded(states: Tensor, width: int) -> Tensor:
    return functional.pad(states, (0, 0, width - states.shape[2], 0))
