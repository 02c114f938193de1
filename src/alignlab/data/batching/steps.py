"""The step loader: yields planned optimizer steps over all epochs as one sequence, and resumes at any step.

Only the plan knows epochs. The loader yields ``num_steps`` steps, so resuming in the middle of an epoch is the same as
resuming anywhere else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from alignlab.data.batching.collate import collate, totals
from alignlab.data.batching.plan import PlannedMicroBatch, plan_epoch, plan_step
from alignlab.data.settings import PlanSettings
from alignlab.data.table.cache import TokenTable
from alignlab.data.table.table import Slice
from alignlab.errors import InputError, nearest
from alignlab.types.batch import StepBatch
from alignlab.types.rows import TokenRow

# Size of the buffer in which a stream is shuffled.
SHUFFLE_BUFFER_ROWS = 10_000


class PlannedRows(NamedTuple):
    """One optimizer step before collation.

    Args:
        epoch: Epochs done after this step, with a fraction; for a stream, whose length is unknown, without one.
        rows: Rows of the step, over all ranks.
        micro_batches: Micro-batches of this rank, as indices into ``rows``.
        validation_set: Name of the validation set of the rows, if they are of one.
    """

    epoch: float
    rows: Sequence[TokenRow]
    micro_batches: Sequence[PlannedMicroBatch]
    validation_set: str | None = None


def num_epoch_steps(num_rows: int, settings: PlanSettings) -> int:
    """Number of optimizer steps in an epoch, including a short one."""
    return -(-num_rows // settings.global_batch_size)


def table_steps(
    table: TokenTable, settings: PlanSettings, rank: int, num_ranks: int, first: int
) -> Iterator[PlannedRows]:
    """Yield the steps of a table from step ``first`` on, epoch after epoch without end.

    Args:
        table: Token rows with known lengths.
        settings: How rows become steps.
        rank: This process.
        num_ranks: Number of processes that share each step.
        first: Step to begin with, from 0.
    """
    keys = _curriculum(table, settings.order_column) if settings.order == "curriculum" else None
    start, skip = divmod(first, num_epoch_steps(len(table), settings))
    for epoch in count(start):
        steps = plan_epoch(table.lengths, settings, epoch, keys)
        for step, indices in enumerate(steps[skip:], start=skip + 1):
            ranks = plan_step(table.lengths[indices], settings, num_ranks)
            yield PlannedRows(epoch + step / len(steps), [table[int(i)] for i in indices], ranks[rank])
        skip = 0


def validation_steps(
    table: TokenTable, sets: Mapping[str | None, range], settings: PlanSettings, rank: int, num_ranks: int, first: int
) -> Iterator[PlannedRows]:
    """Yield the steps of validation sets once, one set after the other; no step has rows of two.

    Args:
        table: All validation rows.
        sets: Indices of the rows of each set.
        settings: As in ``table_steps``.
        rank: As in ``table_steps``.
        num_ranks: As in ``table_steps``.
        first: As in ``table_steps``.
    """

    def steps() -> Iterator[PlannedRows]:
        for name, indices in sets.items():
            part = Slice(table, indices)
            planned = table_steps(part, settings, rank, num_ranks, 0)
            yield from (
                step._replace(validation_set=name) for step in islice(planned, num_epoch_steps(len(part), settings))
            )

    return islice(steps(), first, None)


def _curriculum(table: TokenTable, column: str | None) -> np.ndarray:
    """Values of the column that a curriculum sorts by. Shape ``[rows]``."""
    values = []
    for row in table:
        if column not in row.columns:
            why = f"{row.origin} has no number of that name"
            raise InputError(f"data.order_column={column}", why, nearest(str(column), row.columns))
        values.append(row.columns[column])
    return np.array(values)


def stream_steps(
    stream: Callable[[], Iterator[TokenRow]], settings: PlanSettings, rank: int, num_ranks: int, first: int
) -> Iterator[PlannedRows]:
    """Yield the steps of a stream from step ``first`` on; earlier rows are read again and skipped.

    Args:
        stream: Starts a new pass over the rows; called once per epoch.
        settings: How rows become steps; ``shuffled`` shuffles within a buffer.
        rank: This process.
        num_ranks: Number of processes that share each step.
        first: Step to begin with, from 0.
    """
    number = 0
    for epoch in count():
        rows, before = stream(), number
        if settings.order == "shuffled":
            rows = shuffle_stream(rows, np.random.default_rng([settings.seed, epoch]))
        following = next(rows, None)
        while following is not None:
            step = [following, *islice(rows, settings.global_batch_size - 1)]
            following = next(rows, None)
            number += 1
            if number > first:
                ranks = plan_step([len(row.tokens) for row in step], settings, num_ranks)
                yield PlannedRows(float(epoch + (following is None)), step, ranks[rank])
        if number == before:
            raise InputError("data.streaming=true", "the stream has no row to train on", "Give other data")


def shuffle_stream(
    rows: Iterator[TokenRow], generator: np.random.Generator, size: int = SHUFFLE_BUFFER_ROWS
) -> Iterator[TokenRow]:
    """Yield the rows in random order, each drawn from a buffer of ``size`` rows."""
    buffer = list(islice(rows, size))
    for row in rows:
        index = generator.integers(len(buffer))
        yield buffer[index]
        buffer[index] = row
    yield from (buffer[i] for i in generator.permutation(len(buffer)))


class StepLoader:
    """Yields the collated steps of one rank, from the first step or from the state of a checkpoint.

    Args:
        plan: ``plan(first)`` yields the steps from step ``first`` on.
        num_steps: Total number of steps to yield.
        packing: Whether micro-batches are packed into one flat sequence.
        pad_token_id: Id that fills padded rows.
        num_workers: 1 to collate ahead in another process, 0 to collate in this one.
        resumable: Whether an iteration continues where the last one stopped (training); otherwise each starts at the
            first step (validation).
        weight_column: Numeric column with the weight of each row; None for 1 each.
    """

    def __init__(
        self,
        plan: Callable[[int], Iterator[PlannedRows]],
        *,
        num_steps: int,
        packing: bool,
        pad_token_id: int,
        num_workers: int,
        resumable: bool,
        weight_column: str | None = None,
    ):
        self.resumable, self.weight_column = resumable, weight_column
        self.plan, self.num_steps, self.num_workers = plan, num_steps, num_workers
        self.packing, self.pad_token_id = packing, pad_token_id
        self.next_step = 0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[StepBatch]:
        self.next_step = self.next_step % self.num_steps if self.resumable else 0
        steps = _Steps(self, self.next_step)
        # Its own generator: the model uses the global one, and a resumed run must find that unchanged.
        options = {"num_workers": self.num_workers, "generator": torch.Generator()}
        for step in DataLoader(steps, batch_size=None, **options):
            # Count a step when it is yielded, so that steps prefetched by a worker do not count as done.
            self.next_step += 1
            yield step

    def state_dict(self) -> dict[str, int]:
        """The state to resume from: the index of the next step."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a state of ``state_dict``."""
        self.next_step = state["next_step"]


class _Steps(IterableDataset):
    def __init__(self, loader: StepLoader, first: int):
        self.loader, self.first = loader, first

    def __iter__(self) -> Iterator[StepBatch]:
        for planned in islice(self.loader.plan(self.first), self.loader.num_steps - self.first):
            yield self._collate(planned)

    def _collate(self, planned: PlannedRows) -> StepBatch:
        sizes = totals(planned.rows, self.loader.weight_column)
        options = {"packing": self.loader.packing, "pad_token_id": self.loader.pad_token_id}
        batches, mismatched = [], []
        for batch in planned.micro_batches:
            rows = [planned.rows[index] for index in batch.rows]
            batches.append(collate(rows, counted=batch.counted, **options))
            if rows[0].mismatched is not None:
                mismatched.append(collate([row.mismatched for row in rows], counted=batch.counted, **options))
        return StepBatch(batches, sizes, planned.epoch, mismatched, validation_set=planned.validation_set)
