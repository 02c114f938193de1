"""The loader: planned optimizer steps in one sequence over all epochs, which remembers how far it is.

Epochs are a matter of the plan alone. Whoever iterates sees ``num_steps`` steps and needs no notion of an epoch, so
resuming in the middle of one is the same as resuming anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from alignlab.data.batching.collate import collate, totals
from alignlab.data.batching.plan import PlannedMicroBatch, PlanSettings, plan_epoch, plan_step
from alignlab.data.table.cache import TokenTable
from alignlab.errors import InputError, nearest
from alignlab.types.batch import StepBatch
from alignlab.types.rows import TokenRow

# A stream is shuffled within this many rows.
SHUFFLE_BUFFER_ROWS = 10_000


class PlannedRows(NamedTuple):
    """One optimizer step before collation.

    Args:
        epoch: Passes over the rows once the step is done; of a stream, whose end is not known, those completed before.
        rows: All rows of the step, all ranks.
        micro_batches: Those of this rank, as places in ``rows``.
    """

    epoch: float
    rows: Sequence[TokenRow]
    micro_batches: Sequence[PlannedMicroBatch]


def num_epoch_steps(num_rows: int, settings: PlanSettings) -> int:
    """Optimizer steps in an epoch; a short last one counts."""
    return -(-num_rows // settings.global_batch_size)


def table_steps(
    table: TokenTable, settings: PlanSettings, rank: int, num_ranks: int, first: int
) -> Iterator[PlannedRows]:
    """The steps of a table from number ``first`` on, epoch after epoch without end.

    Args:
        table: Token rows with known lengths.
        settings: How rows become steps.
        rank: This process.
        num_ranks: Processes among which each step is sharding.
        first: Step to begin with, from 0.
    """
    keys = _curriculum(table, settings.order_column) if settings.order == "curriculum" else None
    start, skip = divmod(first, num_epoch_steps(len(table), settings))
    for epoch in count(start):
        steps = plan_epoch(table.lengths, settings, epoch, keys)
        for index, numbers in enumerate(steps[skip:], start=skip + 1):
            ranks = plan_step(table.lengths[numbers], settings, num_ranks)
            yield PlannedRows(epoch + index / len(steps), [table[int(n)] for n in numbers], ranks[rank])
        skip = 0


def _curriculum(table: TokenTable, column: str | None) -> np.ndarray:
    """The column's value of every row."""
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
    """The steps of a stream from number ``first`` on; earlier rows are read again and passed over.

    Args:
        stream: Begins anew with each epoch.
        settings: How rows become steps; ``shuffled`` shuffles within a buffer.
        rank: This process.
        num_ranks: Processes among which each step is sharding.
        first: Step to begin with, from 0.
    """
    number = 0
    for epoch in count():
        rows, before = stream(), number
        if settings.order == "shuffled":
            rows = shuffle_stream(rows, np.random.default_rng([settings.seed, epoch]))
        while step := list(islice(rows, settings.global_batch_size)):
            number += 1
            if number > first:
                ranks = plan_step([len(row.tokens) for row in step], settings, num_ranks)
                yield PlannedRows(float(epoch), step, ranks[rank])
        if number == before:
            raise InputError("data.streaming=true", "the stream has no row to train on", "Give other data")


def shuffle_stream(
    rows: Iterator[TokenRow], generator: np.random.Generator, size: int = SHUFFLE_BUFFER_ROWS
) -> Iterator[TokenRow]:
    """The rows in random order, each drawn from a buffer of the next ``size``."""
    buffer = list(islice(rows, size))
    for row in rows:
        place = generator.integers(len(buffer))
        yield buffer[place]
        buffer[place] = row
    yield from (buffer[i] for i in generator.permutation(len(buffer)))


class StepLoader:
    """Yields the collated steps of one rank, from the first or from where a checkpoint left off.

    Args:
        plan: ``plan(first)`` gives the steps from number ``first`` on.
        num_steps: Steps to yield in all.
        packing: Whether micro-batches are flat.
        pad_token_id: Filling of the padded layout.
        num_workers: 1 collates ahead in another process, 0 here.
        resumable: Whether a pass goes on where the last one was left (training); else each begins anew (validation).
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
    ):
        self.resumable = resumable
        self.plan, self.num_steps, self.num_workers = plan, num_steps, num_workers
        self.packing, self.pad_token_id = packing, pad_token_id
        self.next_step = 0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[StepBatch]:
        self.next_step = self.next_step % self.num_steps if self.resumable else 0
        steps = _Steps(self, self.next_step)
        # A generator of its own: the global one belongs to the model, and a resumed run must find it as it was.
        options = {"num_workers": self.num_workers, "generator": torch.Generator()}
        for step in DataLoader(steps, batch_size=None, **options):
            # Counted when handed out, so that steps which a worker holds ready are not taken for done.
            self.next_step += 1
            yield step

    def state_dict(self) -> dict[str, int]:
        """The number of the next step: all that a plan needs to go on."""
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the state was taken."""
        self.next_step = state["next_step"]


class _Steps(IterableDataset):
    def __init__(self, loader: StepLoader, first: int):
        self.loader, self.first = loader, first

    def __iter__(self) -> Iterator[StepBatch]:
        for planned in islice(self.loader.plan(self.first), self.loader.num_steps - self.first):
            yield self._collate(planned)

    def _collate(self, planned: PlannedRows) -> StepBatch:
        sizes = totals(planned.rows)
        chosen = [[planned.rows[i] for i in batch.rows] for batch in planned.micro_batches]
        layout = {"packing": self.loader.packing, "pad_token_id": self.loader.pad_token_id}
        batches, companions = [], []
        for rows, batch in zip(chosen, planned.micro_batches, strict=True):
            batches.append(collate(rows, counted=batch.counted, **layout))
            if rows[0].companion is not None:
                companions.append(collate([row.companion for row in rows], counted=batch.counted, **layout))
        return StepBatch(batches, sizes, planned.epoch, companions)
