"""The progress bar: loss, reward, tokens/s and time left; without a terminal, plain lines."""

import shutil
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from alignlab.callbacks.held_out_samples import HeldOutSamples
from alignlab.rollout.sampler.base import SamplingProgress
from alignlab.run_folder.log import terminal

FRAME_SECONDS = 0.25
"""Minimum interval between updates: reading a metric waits for the device."""

FIRST_LINE_SECONDS = 30.0
"""Duration of sampling at which a line is printed, if there is no terminal."""

FIRST_FRAME_SECONDS = 2.0
"""Duration of sampling at which the bar shows it."""


class DoublingInterval:
    """Decides when a long activity prints a line: after ``FIRST_LINE_SECONDS``, then each time its duration doubles."""

    def __init__(self):
        self.seconds, self.due_at = 0.0, FIRST_LINE_SECONDS

    def is_due(self, seconds: float) -> bool:
        """Whether a line is due.

        Args:
            seconds: Duration of the activity so far; less than in the last call for another activity.
        """
        if seconds < self.seconds:
            self.due_at = FIRST_LINE_SECONDS
        self.seconds = seconds
        if seconds < self.due_at:
            return False
        self.due_at = 2 * seconds
        return True


class ProgressLine(ProgressBar):
    """Shows the progress of training, and prints the results of validations.

    Args:
        every_n_seconds: Seconds between two lines, if there is no terminal.
    """

    def __init__(self, *, every_n_seconds: Annotated[float, Field(gt=0)]):
        super().__init__()
        self.every_n_seconds = every_n_seconds
        self._enabled = True
        self._bar: Bar | None = None
        self._drawn_at = 0.0
        self._first: tuple[float, int] = (0.0, 0)
        self._sampling_lines = DoublingInterval()

    def enable(self) -> None:
        """Show the progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing; Lightning calls this on every rank but the first."""
        self._enabled = False

    def print(self, *args: Any, **_: Any) -> None:
        """Print a line above the bar, and to the log."""
        if self._enabled:
            self._clear()
            text = " ".join(map(str, args))
            print(folded(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text, flush=True)

    # --- hooks --------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the progress of samplers, in rollouts and validations."""
        rollout = getattr(pl_module, "rollout", None)
        samplers = [] if rollout is None else [("rollout", rollout.sampler)]
        samplers += [("validation", one.sampler) for one in trainer.callbacks if isinstance(one, HeldOutSamples)]
        for activity, sampler in samplers:
            whose = " of rank 0" if trainer.world_size > 1 and sampler.needs_whole_policy else ""
            sampler.on_progress = partial(self.show_sampling, trainer, f"{activity}{whose}")

    def show_sampling(self, trainer: Trainer, activity: str, progress: SamplingProgress) -> None:
        """Draw the progress of a sampler, or print a line, if it takes long.

        Args:
            trainer: The trainer.
            activity: What samples, in words.
            progress: Progress of the sampler.
        """
        if not self._enabled:
            return
        state = sampling_state(activity, progress)
        if not sys.stderr.isatty():
            if self._sampling_lines.is_due(progress.seconds):
                print(state, flush=True)
        elif progress.seconds >= FIRST_FRAME_SECONDS and time.monotonic() - self._drawn_at >= FRAME_SECONDS:
            self._drawn_at = time.monotonic()
            self._draw(trainer.global_step, trainer.estimated_stepping_batches, state)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the results before training."""
        self.print(result_line("before training", trainer.callback_metrics))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first = (time.monotonic(), trainer.global_step)
        self._drawn_at = self._first[0]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, if the last frame or line is older than the interval."""
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
        """Print the results of the validation."""
        if not trainer.sanity_checking:
            self.print(result_line(f"step {trainer.global_step:,}", trainer.callback_metrics))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar and print a last line."""
        total = trainer.estimated_stepping_batches
        state = status(trainer.callback_metrics, trainer.global_step, total, None)
        self.print(progress_line(trainer.global_step, total, state))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the terminal."""
        self._clear()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw(self, step: int, total: float, state: str) -> None:
        if self._bar is None:
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}"))
            console = Console(file=terminal(sys.stderr))
            # All lines are printed by print() of this class, so rich need not redirect the streams.
            self._bar = Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
            self._bar.add_task("", total=None if total == float("inf") else int(total))
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, description=state)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, trainer: Trainer, total: float) -> float | None:
        """Estimate from the mean time per step; None before the first step, or without a last step."""
        started, first = self._first
        done = trainer.global_step - first
        if done <= 0 or not 0 < total < float("inf"):
            return None
        return (time.monotonic() - started) / done * max(0, total - trainer.global_step)


def status(metrics: Mapping[str, Any], step: int, total: float, seconds_left: float | None) -> str:
    """Format loss, reward, tokens/s and time left, as far as they are known.

    Args:
        metrics: Latest values by name.
        step: Number of optimizer steps done.
        total: Total number of optimizer steps; may be infinite.
        seconds_left: Estimated time left; None if unknown.
    """
    parts = []
    if "train/loss" in metrics:
        parts.append(f"loss {float(metrics['train/loss']):.4g}")
    if "reward/mean" in metrics:
        parts.append(reward_text(metrics))
    if "train/tokens_per_second" in metrics:
        parts.append(f"{short_number(float(metrics['train/tokens_per_second']))} tokens/s")
    if seconds_left is not None and step < total:
        parts.append(f"{duration(seconds_left)} left")
    return " · ".join(parts)


def reward_text(metrics: Mapping[str, Any]) -> str:
    """Format mean and standard deviation of the rewards of a rollout: ``reward 0.51 ± 0.5``."""
    spread = f" ± {float(metrics['reward/std']):.3g}" if "reward/std" in metrics else ""
    return f"reward {float(metrics['reward/mean']):.4g}{spread}"


def sampling_state(activity: str, progress: SamplingProgress) -> str:
    """Format the progress of a sampler: ``rollout: 120/768 completions · 2.1k tokens/s · 1:05 left``.

    Args:
        activity: What samples, in words.
        progress: Progress of the sampler.
    """
    ended, total, seconds = progress.num_ended, progress.num_completions, progress.seconds
    parts = [f"{activity}: {ended:,}/{total:,} completions"]
    if seconds > 0:
        parts.append(f"{short_number(progress.num_tokens / seconds)} tokens/s")
    if ended < total and progress.num_tokens:
        parts.append(f"{duration(tokens_left(progress) / progress.num_tokens * seconds)} left")
    return " · ".join(parts)


def tokens_left(progress: SamplingProgress) -> float:
    """Estimate the number of tokens left, as if completions ended at a constant rate, or at their limits if sooner."""
    at_limit = progress.max_tokens - progress.num_tokens
    if not progress.num_ended:
        return at_limit
    left = progress.num_completions - progress.num_ended
    return min(at_limit, progress.num_tokens / progress.num_ended * left)


def progress_line(step: int, total: float, state: str) -> str:
    """Format the progress in one line: ``step 120/1,000 · loss 0.8123 · 15.2k tokens/s · 1:05 left``."""
    of = f"/{int(total):,}" if 0 < total < float("inf") else ""
    return " · ".join(filter(None, (f"step {step:,}{of}", state)))


def result_line(moment: str, metrics: Mapping[str, Any]) -> str:
    """Format the results of a validation in one line: ``step 200 · val/exact_match 0.913 · val/loss 0.4212``."""
    held_out = sorted(name for name in metrics if name.startswith("val/"))
    return " · ".join([moment, *(f"{name} {float(metrics[name]):.4g}" for name in held_out)])


def folded(text: str, width: int) -> str:
    """Break a line between its parts, where a terminal would break it within a word.

    Args:
        text: Parts joined by `` · ``.
        width: Characters of a line.
    """
    first, *parts = text.split(" · ")
    lines = [first]
    for part in parts:
        joined = f"{lines[-1]} · {part}"
        lines = [*lines[:-1], joined] if len(joined) <= width else [*lines, f"  {part}"]
    return "\n".join(lines)


def short_number(value: float) -> str:
    """Format a number with three digits and a letter: 950, 15.2k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Format a duration as ``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
