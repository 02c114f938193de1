"""Collate token rows into micro-batches, packed (one flat sequence) or padded (slower, and simpler to check)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.types.batch import MicroBatch, StepTotals
from alignlab.types.layout import Branches, Path, find_paths, packed_layout, positions
from alignlab.types.rows import TokenRow

Values = Sequence[float] | Tensor
PER_COMPLETION = (list, tuple, Tensor)
"""Types of a column that has one value per completion; others have one per row."""


def collate(
    rows: Sequence[TokenRow],
    packing: bool,
    pad_token_id: int = 0,
    counted: int = 1,
) -> MicroBatch:
    """Collate rows into a micro-batch.

    Args:
        rows: At least one row.
        packing: Whether to concatenate all groups into one flat sequence; otherwise every prompt + completion, and
            every branch with what it continues, becomes one padded row.
        pad_token_id: Id that fills padded rows. Masks are built from positions, so any id works.
        counted: 0 for a filler that only gives every rank the same number of micro-batches.
    """
    groups, branches = [group for row in rows for group in row.groups], _branches(rows)
    tokens = _side_by_side([row.tokens for row in rows], torch.long)
    supervised = torch.tensor([flag for row in rows for flag in row.supervised], dtype=torch.bool)
    paths = find_paths(groups, branches)
    target, path_ids, source = _targets(paths, supervised)
    per_token = sorted(set.intersection(*(set(row.token_columns) for row in rows)))
    if packing:
        layout = packed_layout(groups, branches)
        inputs = {"input_ids": tokens[None], "position_ids": positions(groups, branches)[None], "layout": layout}
        last = [path.start + path.length - 1 for path in paths]
    else:
        inputs, source = _padded(tokens, paths, source, path_ids, target, pad_token_id)
        width = inputs["input_ids"].shape[1]
        last = [row * width + path.before + path.length - 1 for row, path in enumerate(paths)]
    # A completion with branches ends where its first one does.
    firsts = [row for row, path in enumerate(paths) if not row or path.sequence != paths[row - 1].sequence]
    return MicroBatch(
        inputs=inputs,
        source_positions=source,
        labels=tokens[target],
        sequence_ids=torch.tensor([path.sequence for path in paths], dtype=torch.long)[path_ids],
        group_ids=torch.tensor([paths[row].group for row in firsts], dtype=torch.long),
        columns=_columns(rows),
        num_tokens=len(tokens),
        last_positions=torch.tensor([last[row] for row in firsts], dtype=torch.long),
        token_columns={name: _side_by_side([row.token_columns[name] for row in rows]) for name in per_token},
        counted=counted,
        origins=tuple(row.origin for row in rows),
    )


def totals(rows: Sequence[TokenRow]) -> StepTotals:
    """Sizes of a step, counted in the same way as by ``collate``."""
    groups = [group for row in rows for group in row.groups]
    return StepTotals(
        supervised_tokens=sum(count_targets(row) for row in rows),
        sequences=sum(len(group) - 1 for group in groups),
        groups=len(groups),
        tokens=sum(len(row.tokens) for row in rows),
        rows=len(rows),
        chosen_tokens=sum(_count_chosen(row) for row in rows),
        columns=_column_sums(rows),
    )


def _column_sums(rows: Sequence[TokenRow]) -> dict[str, float]:
    """Sums of the numeric columns that every row has, with one value per row."""
    names = set.intersection(*(set(row.columns) for row in rows))
    single = [name for name in sorted(names) if not any(isinstance(row.columns[name], PER_COMPLETION) for row in rows)]
    return {name: sum(float(row.columns[name]) for row in rows) for name in single}


def _branches(rows: Sequence[TokenRow]) -> Branches:
    """Branches by number of the completion over all rows."""
    branches, before = {}, 0
    for row in rows:
        branches.update({before + number: parts for number, parts in row.branches.items()})
        before += sum(len(group) - 1 for group in row.groups)
    return branches


def count_targets(row: TokenRow) -> int:
    """Count the targets of a row: supervised completion tokens with a predecessor on their path."""
    return sum(_count(row, path) for path in find_paths(row.groups, row.branches))


def _count_chosen(row: TokenRow) -> int:
    """Count the targets of each group's first completion, once per completion that follows it."""
    paths = find_paths(row.groups, row.branches)
    firsts = {path.group: path.sequence for path in reversed(paths)}
    chosen = [path for path in paths if path.sequence == firsts[path.group]]
    return sum((len(row.groups[path.group]) - 2) * _count(row, path) for path in chosen)


def _count(row: TokenRow, path: Path) -> int:
    first = path.start if path.context else path.start + 1
    return sum(row.supervised[first : path.start + path.length])


def _targets(paths: Sequence[Path], supervised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat position of each supervised completion token, the path it is on, and the position that predicts it."""
    target, path_ids, source = [], [], []
    for number, path in enumerate(paths):
        targets = path.start + torch.nonzero(supervised[path.start : path.start + path.length])[:, 0]
        sources = targets - 1
        sources[targets == path.start] = -1 if path.source is None else path.source
        kept = sources >= 0
        target.append(targets[kept])
        source.append(sources[kept])
        path_ids.append(torch.full_like(targets[kept], number))
    return torch.cat(target), torch.cat(path_ids), torch.cat(source)


def _padded(tokens: Tensor, paths: Sequence[Path], source: Tensor, path_ids: Tensor, target: Tensor, pad_token_id: int):
    """Build one right-padded row per path, and the source positions in the padded rows flattened."""
    width = max(path.before + path.length for path in paths)
    input_ids = tokens.new_full((len(paths), width), pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, path in enumerate(paths):
        ranges = (*path.context, (path.start, path.start + path.length))
        on_path = torch.cat([tokens[start:end] for start, end in ranges])
        input_ids[row, : len(on_path)] = on_path
        mask[row, : len(on_path)] = 1
    # The source of a completion token is the token right before it on the path.
    first = torch.tensor([path.before - path.start for path in paths])
    source_positions = path_ids * width + target + first[path_ids] - 1
    position_ids = torch.arange(width).expand(len(paths), width)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids}, source_positions


def _columns(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """Numeric columns that every row has, one value per sequence; those of completions that any row has, else NaN."""
    names = set.intersection(*(set(row.columns) for row in rows))
    names |= {name for row in rows for name, value in row.columns.items() if isinstance(value, PER_COMPLETION)}
    return {name: _side_by_side([_per_sequence(row, name) for row in rows]) for name in sorted(names)}


def _per_sequence(row: TokenRow, name: str) -> Values:
    value = row.columns.get(name, math.nan)
    count = sum(len(group) - 1 for group in row.groups)
    return value if isinstance(value, PER_COMPLETION) else [float(value)] * count


def _side_by_side(parts: Sequence[Values], dtype: torch.dtype = torch.float32) -> Tensor:
    """Lists or tensors one after the other, as one tensor."""
    if any(isinstance(part, Tensor) for part in parts):
        return torch.cat([torch.as_tensor(part, dtype=dtype) for part in parts])
    return torch.tensor([value for part in parts for value in part], dtype=dtype)
