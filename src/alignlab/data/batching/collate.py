"""Collate token rows into micro-batches, packed (one flat sequence) or padded (slower, and simpler to check)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.types.batch import MicroBatch, StepTotals
from alignlab.types.layout import packed_layout, positions
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
        packing: Whether to concatenate all groups into one flat sequence; otherwise every prompt + completion becomes
            one padded row.
        pad_token_id: Id that fills padded rows. Masks are built from positions, so any id works.
        counted: 0 for a filler that only gives every rank the same number of micro-batches.
    """
    groups = [group for row in rows for group in row.groups]
    tokens = _side_by_side([row.tokens for row in rows], torch.long)
    supervised = torch.tensor([flag for row in rows for flag in row.supervised], dtype=torch.bool)
    paths = _paths(groups)
    target, sequence_ids, source = _targets(paths, supervised)
    per_token = sorted(set.intersection(*(set(row.token_columns) for row in rows)))
    if packing:
        inputs = {"input_ids": tokens[None], "position_ids": positions(groups)[None], "layout": packed_layout(groups)}
        last_positions = [before + length - 1 for *_, before, length in paths]
    else:
        inputs, source = _padded(tokens, paths, source, sequence_ids, target, pad_token_id)
        width = inputs["input_ids"].shape[1]
        last_positions = [row * width + prompt + length - 1 for row, (_, _, prompt, _, length) in enumerate(paths)]
    return MicroBatch(
        inputs=inputs,
        source_positions=source,
        labels=tokens[target],
        sequence_ids=sequence_ids,
        group_ids=torch.tensor([group for group, *_ in paths], dtype=torch.long),
        columns=_columns(rows),
        num_tokens=len(tokens),
        last_positions=torch.tensor(last_positions, dtype=torch.long),
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


def count_targets(row: TokenRow) -> int:
    """Count the targets of a row: supervised completion tokens with a predecessor on their path."""
    return sum(_count(row, path) for path in _paths(row.groups))


def _count_chosen(row: TokenRow) -> int:
    """Count the targets of each group's first completion, once per completion that follows it."""
    others = [len(group) - 2 for group in row.groups]
    firsts = {path[0]: path for path in reversed(_paths(row.groups))}
    return sum(others[group] * _count(row, path) for group, path in firsts.items() if others[group])


def _count(row: TokenRow, path: "Path") -> int:
    _, _, prompt, before, length = path
    first = before if prompt else before + 1
    return sum(row.supervised[first : before + length])


Path = tuple[int, int, int, int, int]
"""``(group, prompt start, prompt length, completion start, completion length)``, in flat positions."""


def _paths(groups: Sequence[Sequence[int]]) -> list[Path]:
    paths, start = [], 0
    for index, (prompt, *completions) in enumerate(groups):
        before = start + prompt
        for length in completions:
            paths.append((index, start, prompt, before, length))
            before += length
        start = before
    return paths


def _targets(paths: Sequence[Path], supervised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat position of each supervised completion token, its sequence, and the position that predicts it."""
    target, sequence_ids, source = [], [], []
    for sequence, (_, start, prompt, before, length) in enumerate(paths):
        targets = before + torch.nonzero(supervised[before : before + length])[:, 0]
        sources = targets - 1
        sources[targets == before] = start + prompt - 1 if prompt else -1
        kept = sources >= 0
        target.append(targets[kept])
        source.append(sources[kept])
        sequence_ids.append(torch.full_like(targets[kept], sequence))
    return torch.cat(target), torch.cat(sequence_ids), torch.cat(source)


def _padded(
    tokens: Tensor, paths: Sequence[Path], source: Tensor, sequence_ids: Tensor, target: Tensor, pad_token_id: int
):
    """Build one right-padded row per path, and the source positions in the padded rows flattened."""
    width = max(prompt + length for *_, prompt, _, length in paths)
    input_ids = tokens.new_full((len(paths), width), pad_token_id)
    mask = torch.zeros_like(input_ids)
    for row, (_, start, prompt, before, length) in enumerate(paths):
        path = torch.cat([tokens[start : start + prompt], tokens[before : before + length]])
        input_ids[row, : len(path)] = path
        mask[row, : len(path)] = 1
    # The source of a completion token is the token right before it on the path.
    first = torch.tensor([prompt - before for _, _, prompt, before, _ in paths])
    source_positions = sequence_ids * width + target + first[sequence_ids] - 1
    position_ids = torch.arange(width).expand(len(paths), width)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids}, source_positions


def _columns(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """Numeric columns that every row has, one value per sequence."""
    names = set.intersection(*(set(row.columns) for row in rows))
    return {name: _side_by_side([_per_sequence(row, name) for row in rows]) for name in sorted(names)}


def _per_sequence(row: TokenRow, name: str) -> Values:
    value = row.columns[name]
    count = sum(len(group) - 1 for group in row.groups)
    return value if isinstance(value, PER_COMPLETION) else [float(value)] * count


def _side_by_side(parts: Sequence[Values], dtype: torch.dtype = torch.float32) -> Tensor:
    """Lists or tensors one after the other, as one tensor."""
    if any(isinstance(part, Tensor) for part in parts):
        return torch.cat([torch.as_tensor(part, dtype=dtype) for part in parts])
    return torch.tensor([value for part in parts for value in part], dtype=dtype)
