"""Ends a job of a sweep that is worse than most of the others were at the same step.

The median stopping rule (Golovin et al. 2017, section 3.2.2): a trial is stopped at a step if its best value so far is
worse than the median of the other trials' values.

Departures:

1. The others' values are those of their last validation up to that step, as in Optuna's ``MedianPruner``; the paper
   takes their running means.
"""

import json
import logging
import math
import os
import statistics
from pathlib import Path
from typing import Annotated, Any

import lightning
from pydantic import Field

from alignlab.metrics import Mode
from alignlab.run_folder.location import JOBS, SWEEP
from alignlab.run_folder.metrics_file import read_metrics

log = logging.getLogger(__name__)


class Pruning(lightning.Callback):
    """Stops the training after a validation if the median of the sweep's finished jobs is better.

    ``model/`` is written, as after any training that ends.

    Args:
        monitor: Name of the metric, as it is logged.
        mode: Whether the smallest or the largest value is the best.
        min_jobs: Number of finished jobs before any is stopped.
        after_steps: Number of optimizer steps before a job is stopped.
    """

    def __init__(
        self,
        *,
        monitor: str,
        mode: Mode,
        min_jobs: Annotated[int, Field(ge=1)],
        after_steps: Annotated[int, Field(ge=0)],
    ):
        self.monitor, self.mode, self.min_jobs, self.after_steps = monitor, mode, min_jobs, after_steps
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best value."""
        self.best = state["best"]

    def on_validation_end(self, trainer: lightning.Trainer, method: lightning.LightningModule) -> None:
        """Compare with the other jobs, on rank 0."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not math.isfinite(value):
            return
        better = {"min": min, "max": max}[self.mode]
        self.best = float(value) if self.best is None else better(self.best, float(value))
        others = self._others(trainer.global_step) if trainer.is_global_zero else []
        others = trainer.strategy.broadcast(others)
        if trainer.should_stop or trainer.global_step < self.after_steps or len(others) < self.min_jobs:
            return
        median = statistics.median(others)
        if median != self.best and better(median, self.best) == median:
            text = "pruned after step %d: %s is %.4g at best, the median of %d jobs of the sweep %.4g"
            log.warning(text, trainer.global_step, self.monitor, self.best, len(others), median)
            trainer.should_stop = True

    def _others(self, step: int) -> list[float]:
        """Values of the sweep's finished jobs in their last validation up to a step."""
        sweep = os.environ.get(SWEEP)
        found = []
        for record in Path(sweep).glob(f"{JOBS}/*/job.json") if sweep else ():
            entry = json.loads(record.read_text(encoding="utf-8"))
            if entry["exit_code"] == 0 and entry["run"]:
                rows = read_metrics(Path(entry["run"]) / "metrics.csv")
                values = [row[self.monitor] for row in rows if self.monitor in row and row["progress/step"] <= step]
                found += values[-1:]
        return found
