"""Collate token rows into micro-batches, packed (one flat sequence) or padded (slower, and simpler to check)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.types.batch import UNITS, MicroBatch, StepTotals
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
        turn_weights=_side_by_side(list(map(token_weights, rows)))[target] if any(r.weights for r in rows) else None,
        counted=counted,
        origins=tuple(row.origin for row in rows),
    )


def totals(rows: Sequence[TokenRow], weight_column: str | None = None) -> StepTotals:
    """Sizes of a step, counted in the same way as by ``collate``.

    Args:
        rows: Rows of the step, over all ranks.
        weight_column: Numeric column with the weight of each row; None for 1 each.
    """
    counts = list(map(_row_counts, rows))
    weighted: dict[str, float] = {}
    if weight_column is not None or any(row.weights for row in rows):
        row_weights = [1.0 if weight_column is None else row.columns[weight_column] for row in rows]
        by_turn = [one | {"supervised_tokens": _turn_weight(row)} for row, one in zip(rows, counts, strict=True)]
        weighted = {unit: sum(w * one[unit] for w, one in zip(row_weights, by_turn, strict=True)) for unit in UNITS}
    sums = {unit: sum(one[unit] for one in counts) for unit in UNITS if unit != "pairs"}
    return StepTotals(**sums, weighted=weighted, columns=_column_sums(rows))


def _row_counts(row: TokenRow) -> dict[str, int]:
    """The count of each unit in a row."""
    sequences, groups = sum(len(group) - 1 for group in row.groups), len(row.groups)
    return {
        "supervised_tokens": count_targets(row),
        "sequences": sequences,
        "pairs": sequences - groups,
        "groups": groups,
        "tokens": len(row.tokens),
        "rows": 1,
        "chosen_tokens": _count_chosen(row),
    }


def token_weights(row: TokenRow) -> Sequence[float]:
    """Weight of each token of a row in the loss, by its turn."""
    return row.weights or [float(flag) for flag in row.supervised]


def _turn_weight(row: TokenRow) -> float:
    """Sum of the weights of the targets of a row."""
    weights = token_weights(row)
    return sum(sum(weights[slice(*_targets_on(path))]) for path in find_paths(row.groups, row.branches))


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
    return sum(row.supervised[slice(*_targets_on(path))])


def _targets_on(path: Path) -> tuple[int, int]:
    """Flat positions of a path that have a predecessor."""
    return path.start if path.context else path.start + 1, path.start + path.length


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
