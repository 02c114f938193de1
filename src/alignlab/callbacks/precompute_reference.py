"""Reference log-probs computed once before training, and cached next to the token tables.

The cache key is a hash of the weights, the rows and the code that computes the values.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from operator import attrgetter
from pathlib import Path

import lightning
import torch
from filelock import FileLock
from torch import Tensor

from alignlab.data.batching import mismatch
from alignlab.data.batching.collate import collate
from alignlab.data.batching.steps import num_epoch_steps, table_steps
from alignlab.data.datamodule import DataModule
from alignlab.data.table.cache import user_cache
from alignlab.data.table.table import TokenTable
from alignlab.distributed.comm import all_gather, num_ranks, rank
from alignlab.losses import logps
from alignlab.methods.base import Method
from alignlab.methods.reference import COLUMN, ReferencePolicy
from alignlab.models import flash_attention, label_scores, packed_attention, scoring
from alignlab.system.disk import write_text
from alignlab.types import layout
from alignlab.types.batch import MicroBatch, move
from alignlab.types.rows import TokenRow

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10

CODE = (scoring, label_scores, packed_attention, flash_attention, layout, logps, mismatch)
"""Modules whose source code is part of the cache key."""

Score = Callable[[MicroBatch], Tensor]


class PrecomputeReference(lightning.Callback):
    """Scores all rows with the reference before training, if ``precompute_reference`` is set."""

    def on_fit_start(self, trainer: lightning.Trainer, method: Method) -> None:
        """Add the column of log-probs, and free the reference."""
        for reference in method.components:
            if isinstance(reference, ReferencePolicy) and reference.precomputes:
                method.verify_packing()
                score = partial(method.sharding.forward, reference.logps)
                fingerprint = f"{reference.fingerprint} {trainer.precision}"
                with method.scoring_mode():
                    add_reference_column(trainer.datamodule, COLUMN, fingerprint, score, method.device)
                reference.weights = None  # from now on log-probs come from the column


def add_reference_column(data: DataModule, name: str, fingerprint: str, score: Score, device: torch.device) -> None:
    """Add a column with the log-probs of the completions to the training and validation tables.

    Args:
        data: Data module whose tables get the column.
        name: Name of the column.
        fingerprint: Fingerprint of the reference weights.
        score: Micro-batch → log-probs of its completions ``[S]``; called equally often on all ranks.
        device: Device of the micro-batches.
    """
    folder = Path(data.load.cache_dir or user_cache()).parent / "reference"
    for part in ("train", "validation"):
        table = getattr(data, part)
        if table is None:
            continue
        file = folder / f"{column_key(table, fingerprint)}.json"
        values = None if data.load.fresh else read_values(file)
        if not all(all_gather(values is not None)):
            selections = (_itself, attrgetter("mismatched")) if data.mismatched else (_itself,)
            values = [score_table(data, table, score, device, part, select) for select in selections]
            _write(file, values)
        log.info("reference log-probs of the %s rows: %s", part, file)
        data.add_column(part, name, *values)


def column_key(table: TokenTable, fingerprint: str) -> str:
    """Hash of the rows, the weights and the code, which together determine the values."""
    code = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in CODE)
    return hashlib.sha256(f"{table.key} {fingerprint} {code}".encode()).hexdigest()[:16]


@torch.no_grad()
def score_table(
    data: DataModule, table: TokenTable, score: Score, device: torch.device, part: str, select: Callable
) -> list[list[float]]:
    """Compute the log-probs of the completions of every row, in the order of the table; the ranks share the work.

    Args:
        data: Data module with the layout and batch sizes.
        table: The rows.
        score: As in ``add_reference_column``.
        device: As in ``add_reference_column``.
        part: ``train`` or ``validation``, for the log.
        select: Row → row to score: the row itself or its mismatched row.
    """
    plan = replace(data.plan, order="as_is")
    num_steps = num_epoch_steps(len(table), plan)
    found: dict[int, list[float]] = {}
    last_logged = time.monotonic()
    for number, step in enumerate(islice(table_steps(table, plan, rank(), num_ranks(), 0), num_steps)):
        for batch in step.micro_batches:
            rows = [select(step.rows[index]) for index in batch.rows]
            micro = collate(rows, data.load.packing, data.tokenizer.pad_token_id or 0)
            values = iter(score(move(micro, device)).double().tolist())
            for index, row in zip(batch.rows, rows, strict=True):
                found[number * plan.global_batch_size + index] = [next(values) for _ in range(_num_completions(row))]
        if time.monotonic() - last_logged > SECONDS_BETWEEN_LINES:
            last_logged = time.monotonic()
            log.info("reference log-probs, %s: %d of %d batches", part, number + 1, num_steps)
    merged = {index: values for one in all_gather(found) for index, values in one.items()}
    return [merged[index] for index in range(len(table))]


def _itself(row: TokenRow) -> TokenRow:
    return row


def _num_completions(row: TokenRow) -> int:
    return sum(len(group) - 1 for group in row.groups)


def read_values(file: Path) -> list | None:
    """Read cached values; ``None``, with a warning if the file is damaged, when there are none."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["sha256"] == _checksum(content["values"]):
            return content["values"]
        why = "its checksum does not match"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"it cannot be read: {error}"
    log.warning("%s is damaged (%s) and will be recomputed", file, why)
    return None


def _write(file: Path, values: list) -> None:
    """Cache values. All ranks call this, and other runs may do so at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        write_text(file, json.dumps({"sha256": _checksum(values), "values": values}))


def _checksum(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
