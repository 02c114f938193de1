"""The progress bar: loss, tokens/s and time left; short plain lines where there is no terminal."""

import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from alignlab.run_folder.log import terminal

FRAME_SECONDS = 0.25
"""Values are read at most this often: reading one waits for the device."""


class Progress(ProgressBar):
    """Shows how far training is. Results of validations are printed, so that they stay.

    Args:
        every_n_seconds: Without a terminal: seconds between two lines.
    """

    def __init__(self, *, every_n_seconds: Annotated[float, Field(gt=0)]):
        super().__init__()
        self.every_n_seconds = every_n_seconds
        self._enabled = True
        self._bar: Bar | None = None
        self._drawn_at = 0.0
        self._first: tuple[float, int] = (0.0, 0)

    def enable(self) -> None:
        """Show."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; on every rank but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar, and into the log."""
        if self._enabled:
            self._clear()
            print(*args, **kwargs, flush=True)

    # --- what Lightning calls -----------------------------------------------------------------------------------------

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where training begins."""
        self.print(result_line("before training", trainer.callback_metrics))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first = (time.monotonic(), trainer.global_step)
        self._drawn_at = self._first[0]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, if the last frame or line is old enough."""
        on_terminal = sys.stderr.isatty()
        due = time.monotonic() - self._drawn_at >= (FRAME_SECONDS if on_terminal else self.every_n_seconds)
        if not (self._enabled and due):
            return
        self._drawn_at = time.monotonic()
        total = trainer.estimated_stepping_batches
        state = status(trainer.callback_metrics, trainer.global_step, total, self._seconds_left(trainer, total))
        if on_terminal:
            self._draw(trainer.global_step, total, state)
        else:
            print(progress_line(trainer.global_step, total, state), flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the results."""
        if not trainer.sanity_checking:
            self.print(result_line(f"step {trainer.global_step:,}", trainer.callback_metrics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the bar away and leave the last line."""
        total = trainer.estimated_stepping_batches
        state = status(trainer.callback_metrics, trainer.global_step, total, None)
        self.print(progress_line(trainer.global_step, total, state))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._clear()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw(self, step: int, total: float, state: str) -> None:
        if self._bar is None:
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}"))
            console = Console(file=terminal(sys.stderr))
            # What is printed meanwhile goes through print() here, so rich need not take the streams over.
            self._bar = Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
            self._bar.add_task("", total=None if total == float("inf") else int(total))
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, description=state)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, trainer: Trainer, total: float) -> float | None:
        """By the mean time per step so far; None before there is one, or without an end."""
        started, first = self._first
        done = trainer.global_step - first
        if done <= 0 or not 0 < total < float("inf"):
            return None
        return (time.monotonic() - started) / done * max(0, total - trainer.global_step)


def status(metrics: Mapping[str, Any], step: int, total: float, seconds_left: float | None) -> str:
    """Loss, tokens/s and time left, those that are known.

    Args:
        metrics: Newest values by name.
        step: Optimizer steps done.
        total: Optimizer steps in all; may be infinite.
        seconds_left: Estimate; None where there is none.
    """
    parts = []
    if "train/loss" in metrics:
        parts.append(f"loss {float(metrics['train/loss']):.4g}")
    if "train/tokens_per_second" in metrics:
        parts.append(f"{short_number(float(metrics['train/tokens_per_second']))} tokens/s")
    if seconds_left is not None and step < total:
        parts.append(f"{duration(seconds_left)} left")
    return " · ".join(parts)


def progress_line(step: int, total: float, state: str) -> str:
    """One plain line: ``step 120/1,000 · loss 0.8123 · 15.2k tokens/s · 1:05 left``."""
    of = f"/{int(total):,}" if 0 < total < float("inf") else ""
    return " · ".join(filter(None, (f"step {step:,}{of}", state)))


def result_line(moment: str, metrics: Mapping[str, Any]) -> str:
    """Results of a validation in one line: ``step 200 · val/exact_match 0.913 · val/loss 0.4212``."""
    held_out = sorted(name for name in metrics if name.startswith("val/"))
    return " · ".join([moment, *(f"{name} {float(metrics[name]):.4g}" for name in held_out)])


def short_number(value: float) -> str:
    """Three digits and a letter: 950, 15.2k, 1.20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
