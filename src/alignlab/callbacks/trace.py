"""A trace of a few optimizer steps, for viewers of Chrome's format."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, WARMUP, STEPS = 2, 1, 3
"""Optimizer steps before the profiler starts, those that it runs without a record, and those of the record."""


class Trace(lightning.Callback):
    """Writes ``rank-N.json`` of a few optimizer steps: operators of PyTorch, and kernels of CUDA.

    A run of fewer steps has what there is from the third step on; one of fewer than four steps has no trace.

    Args:
        folder: Made if needed. A trace in it is replaced.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._profiler: profile | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the schedule."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        steps = schedule(wait=WAIT, warmup=WARMUP, active=STEPS, repeat=1)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"rank-{trainer.global_rank}.json"
        self._profiler = profile(
            activities=activities, schedule=steps, on_trace_ready=lambda made: made.export_chrome_trace(str(file))
        )
        self._profiler.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Count an optimizer step, and end with the last one of the record."""
        if self._profiler is not None:
            self._profiler.step()
            if self._profiler.step_num >= WAIT + WARMUP + STEPS:
                self._stop()

    def on_train_end(self, *_: Any) -> None:
        """Write what there is."""
        self._stop()

    def on_exception(self, *_: Any) -> None:
        """Write what there is."""
        self._stop()

    def _stop(self) -> None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
