"""Key-value cache with each prompt stored once for all its completions, and attention over it.

All completions of a prompt attend to its keys in one matrix product (Hydragen, Juravsky et al. 2024, arXiv 2402.05099),
so a prompt costs memory and bandwidth once, not once per completion. A row is a completion. The newest token of every
row is written to the same column; a row that is added later starts at a later column. This is correct because the keys
already contain their positions.

Departures:

1. One softmax over the scores of prompt and completion; the paper computes two and merges them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FIRST_COLUMNS = 32
"""Initial number of columns."""


@dataclass
class Layer:
    """Keys and values of one layer.

    Args:
        prompts: Keys and values of the prompts, left-padded. Each ``[P, key-value heads, W, d]``.
        rows: Keys and values of the completions. Each ``[at least R, key-value heads, at least column + 1, d]``.
    """

    prompts: list[Tensor]
    rows: list[Tensor]


class SharedPromptCache:
    """Key-value cache of R completions of P prompts.

    Args:
        device: Device of the model.
        has_fixed_shapes: Whether to attend to all columns, the unused ones masked, so that a step has the same shapes
            as the last one and can be replayed.

    Attributes:
        windows: Sliding windows that layers have used; ``None`` for full attention.
        masks: Masks of a step, by window; to be cleared at the start of a step.
        version: Number of times that tensors were replaced.
    """

    def __init__(self, device: torch.device, has_fixed_shapes: bool):
        self.has_fixed_shapes = has_fixed_shapes
        self.version = 0
        self.layers: list[Layer] = []
        self.visible = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self.prompt_index = torch.zeros(0, dtype=torch.long, device=device)
        self.start = torch.zeros(0, dtype=torch.long, device=device)
        self.column = -1
        self.newest = torch.zeros(1, dtype=torch.long, device=device)
        self.windows: set[int | None] = set()
        self.masks: dict[int | None, Tensor | None] = {}

    # --- prompts and rows -----------------------------------------------------------------------------

    def add_prompts(self, states: Sequence[tuple[Tensor, Tensor]], visible: Tensor) -> None:
        """Append prompts.

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

    def add_rows(self, prompt_index: Tensor) -> None:
        """Append rows without tokens, which start at the next column.

        Args:
            prompt_index: Prompt of each row, ascending, not below those of existing rows. Shape ``[r]``.
        """
        start, end = len(self.prompt_index), len(self.prompt_index) + len(prompt_index)
        self.prompt_index = torch.cat([self.prompt_index, prompt_index])
        self.start = torch.cat([self.start, torch.full_like(prompt_index, self.column + 1)])
        for layer in self.layers:
            capacity, _, num_columns, _ = layer.rows[0].shape
            if end > capacity:
                layer.rows = [_resized(old, end, num_columns) for old in layer.rows]
            for states in layer.rows:  # of earlier rows, which may hold NaN
                states[start:end] = 0
        self._regroup()

    def keep(self, rows: Tensor, prompts: Tensor) -> None:
        """Keep some rows and prompts, and remove the others and unused columns.

        Args:
            rows: Indices of the rows to keep, ascending. Shape ``[r]``.
            prompts: Indices of the prompts to keep, ascending; must include those of the rows. Shape ``[p]``.
        """
        self.prompt_index, self.start = torch.searchsorted(prompts, self.prompt_index[rows]), self.start[rows]
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
        """Advance to the next column, for the next token of every row."""
        self.column += 1
        self.newest.fill_(self.column)
        capacity, _, num_columns, _ = self.layers[0].rows[0].shape
        if self.column == num_columns:
            self.version += 1
            more = max(min(num_columns, 8 * FIRST_COLUMNS), num_columns // 4)
            for layer in self.layers:
                layer.rows = [_resized(old, capacity, num_columns + more) for old in layer.rows]

    def _regroup(self) -> None:
        """Compute the index of every row in a grid of P prompts by the largest number of rows of a prompt."""
        self.version += 1
        sizes = torch.bincount(self.prompt_index, minlength=len(self.visible))
        self.group_size = int(sizes.max())
        rank = torch.arange(len(self.prompt_index), device=sizes.device) - (sizes.cumsum(0) - sizes)[self.prompt_index]
        full = len(self.prompt_index) == len(self.visible) * self.group_size
        self.grid_index = None if full else self.prompt_index * self.group_size + rank
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
        """Store the newest token of every row, and compute its attention to its prompt and completion.

        Args:
            index: Index of the layer.
            query: Shape ``[R, heads, 1, d]``.
            key: Shape ``[R, key-value heads, 1, d]``.
            value: Like ``key``.
            scaling: Factor of the scores.
            softcap: Soft cap of the scores; ``None`` for no cap.
            window: Size of the sliding window, including the token itself; ``None`` for full attention.

        Returns:
            Shape ``[R, 1, heads, d]``.
        """
        layer, used = self.layers[index], slice(0, self._num_columns())
        keys, values = (states[: len(query)] for states in layer.rows)
        for states, newest in ((keys, key), (values, value)):
            states.index_copy_(2, self.newest, newest.to(states.dtype))
        prompt_keys, prompt_values = layer.prompts
        # Group the query heads by key-value head: [R, key-value heads, queries per head, d].
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
        """Group rows ``[R, h, n, d]`` by prompt: ``[P, h, group size * n, d]``."""
        if self.grid_index is not None:
            grid = states.new_zeros(len(self.visible) * self.group_size, *states.shape[1:])
            states = grid.index_copy_(0, self.grid_index, states)
        return states.unflatten(0, (-1, self.group_size)).transpose(1, 2).flatten(2, 3)

    def _ungrouped(self, states: Tensor) -> Tensor:
        """Inverse of ``_grouped``."""
        states = states.unflatten(2, (self.group_size, -1)).transpose(1, 2).flatten(0, 1)
        return states if self.grid_index is None else states[self.grid_index]

    def _num_columns(self) -> int:
        """Number of columns to attend to."""
        return self.layers[0].rows[0].shape[2] if self.has_fixed_shapes else self.column + 1

    def _mask(self, window: int | None) -> Tensor | None:
        """True where a row must not attend, over prompt and completion. Shape ``[R, W + columns]``, or None."""
        if window is not None and window >= self.visible.shape[1] + self._num_columns():
            window = None
        if window not in self.masks:
            needed = self.ragged or self.has_fixed_shapes or window is not None
            self.masks[window] = self._hidden(window) if needed else None
        return self.masks[window]

    def _hidden(self, window: int | None) -> Tensor:
        width, device = self.visible.shape[1], self.prompt_index.device
        prompt = ~self.visible[self.prompt_index]
        columns = torch.arange(self._num_columns(), device=device)
        completion = (columns < self.start[:, None]) | (columns > self.newest)
        if window is not None:
            length = self.newest - self.start
            prompt = prompt | ((length + width)[:, None] - torch.arange(width, device=device) >= window)
            completion = completion | (self.newest - columns >= window)
        return torch.cat([prompt, completion], dim=1)


def _wide(states: Tensor) -> Tensor:
    """Convert 16-bit tensors to float32 on CPUs, which have no product of them with a float32 result."""
    return states if states.is_cuda or states.dtype == torch.float64 else states.float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``[n, h, a, b] @ [n, h, b, c]`` in float32 or wider; in bfloat16 the scores would be off by several per cent."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    wide = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
    return wide.unflatten(0, left.shape[:2])


def _resized(states: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Copy to a larger tensor; the rest is 0, because masked values are multiplied by 0, and memory may hold NaN."""
    new = states.new_zeros(num_rows, states.shape[1], num_columns, states.shape[3])
    new[: len(states), :, : states.shape[2]] = states[:, :, :num_columns]
    return new


def _left_padded(states: Tensor, width: int) -> Tensor:
    return functional.pad(states, (0, 0, width - states.shape[2], 0))
