"""Steps that changed nothing because their loss or gradient was not finite: their rows are named, many end the run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from alignlab.distributed.comm import all_gather
from alignlab.errors import RunError
from alignlab.types.batch import StepBatch

log = logging.getLogger(__name__)

MAX_LOST_STEPS = 5
"""Lost steps in a row that end the run."""

MAX_NAMED_ROWS = 8
"""Rows that a message names."""


class LostSteps:
    """Counts lost steps in a row."""

    def __init__(self):
        self.in_a_row = 0

    def count(self, lost: bool, step: StepBatch, sums: list[Tensor], number: int) -> None:
        """Take note of a step; every rank must.

        Args:
            lost: Whether its loss or gradient was not finite; the same on all ranks.
            step: What this rank had of it.
            sums: Loss of each of its micro-batches, each ``[]``.
            number: Of the step.

        Raises:
            RunError: It was the last of ``MAX_LOST_STEPS``.
        """
        self.in_a_row = self.in_a_row + 1 if lost else 0
        if self.in_a_row == 1:
            log.warning("step %d changed nothing: %s", number, blame(step, sums))
        if self.in_a_row == MAX_LOST_STEPS:
            why = f"the last {MAX_LOST_STEPS} steps (now at {number}) changed nothing: {blame(step, sums)}"
            instead = "Look at these rows; or lower optimizer.lr, raise scheduler.warmup_steps, and start anew"
            raise RunError("training on", why, instead)


@contextmanager
def told_of_overflow(lr: float) -> Iterator[None]:
    """Tell in a paragraph that an optimizer meets numbers that its weights' format does not hold.

    Raises:
        RunError: In place of PyTorch's error.
    """
    try:
        yield
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error) and not isinstance(error, OverflowError):
            raise
        why = f"the optimizer met a number too large for the format of the weights ({error})"
        raise RunError(f"a step at rate {lr:g}", why, "Lower optimizer.lr, or type model.dtype=float32") from error


def blame(step: StepBatch, sums: list[Tensor]) -> str:
    """What was not finite in a step, and of which rows; every rank must ask.

    Args:
        step: What this rank had of it.
        sums: Loss of each of its micro-batches, each ``[]``.
    """
    fine = torch.stack(sums).isfinite().tolist()
    counted = [(batch.origins, ok) for batch, ok in zip(step.micro_batches, fine, strict=True) if batch.counted]
    bad = _distinct([row for origins, ok in counted if not ok for row in origins])
    rows = bad or _distinct([row for origins, _ in counted for row in origins])
    what = "the loss of a micro-batch" if bad else "the gradient"
    more = f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
    return f"{what} was not finite; its rows are {', '.join(rows[:MAX_NAMED_ROWS])}{more}"


def _distinct(rows: list[str]) -> list[str]:
    """The rows of all ranks, each once."""
    return list(dict.fromkeys(row for share in all_gather(rows) for row in share))
