"""Skipped steps: optimizer steps that are skipped because their loss or gradient is not finite.

The log names their rows. Several skipped steps in a row end the run.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from alignlab.distributed.comm import all_gather
from alignlab.errors import RunError
from alignlab.types.batch import StepBatch

log = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 5
"""Number of skipped steps in a row that ends the run."""

MAX_NAMED_ROWS = 8
"""Largest number of rows that a message names."""


class SkippedSteps:
    """Count skipped steps in a row."""

    def __init__(self):
        self.in_a_row = 0

    def count(self, skipped: bool, step: StepBatch, sums: list[Tensor], number: int) -> None:
        """Count a step. All ranks must call this.

        Args:
            skipped: Whether the step was skipped; the same on all ranks.
            step: This rank's part of the step.
            sums: Loss of each of its micro-batches, each ``[]``.
            number: Number of the step, for messages.

        Raises:
            RunError: The last ``MAX_SKIPPED_STEPS`` steps were skipped.
        """
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row == 1:
            log.warning("step %d changed nothing: %s", number, describe_rows(step, sums))
        if self.in_a_row == MAX_SKIPPED_STEPS:
            why = f"the last {MAX_SKIPPED_STEPS} steps (now at {number}) changed nothing: {describe_rows(step, sums)}"
            instead = "Look at these rows; or lower optimizer.lr or raise scheduler.warmup_steps, and start again"
            raise RunError("training on", why, instead)


@contextmanager
def explain_overflow(lr: float) -> Iterator[None]:
    """Turn an overflow error of the optimizer into a ``RunError``.

    Args:
        lr: Learning rate of the step, for the message.

    Raises:
        RunError: A number does not fit the dtype of the weights.
    """
    try:
        yield
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error) and not isinstance(error, OverflowError):
            raise
        why = f"a number in the optimizer is too large for the dtype of the weights ({error})"
        raise RunError(f"a step at rate {lr:g}", why, "Lower optimizer.lr, or type model.dtype=float32") from error


def describe_rows(step: StepBatch, sums: list[Tensor]) -> str:
    """Describe what was not finite in a step, and its rows on all ranks. All ranks must call this.

    Args:
        step: This rank's part of the step.
        sums: Loss of each of its micro-batches, each ``[]``.
    """
    finite = torch.stack(sums).isfinite().tolist()
    counted = [(batch.origins, ok) for batch, ok in zip(step.micro_batches, finite, strict=True) if batch.counted]
    bad = _distinct([row for origins, ok in counted if not ok for row in origins])
    rows = bad or _distinct([row for origins, _ in counted for row in origins])
    what = "the loss of a micro-batch" if bad else "the gradient"
    more = f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
    return f"{what} was not finite; its rows are {', '.join(rows[:MAX_NAMED_ROWS])}{more}"


def _distinct(rows: list[str]) -> list[str]:
    """The rows of all ranks, each once."""
    return list(dict.fromkeys(row for share in all_gather(rows) for row in share))
