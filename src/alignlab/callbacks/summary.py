"""summary.json: facts about a run, its first and last metrics, its duration and its memory use."""

import importlib.metadata
import json
import math
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from alignlab.callbacks.best_weights import BestWeights
from alignlab.system.disk import write_text
from alignlab.system.processes import Stopped

PACKAGES = ("alignlab", "torch", "lightning", "transformers", "peft", "datasets", "tokenizers")
MIB = 2**20


class Summary(Callback):
    """Collects a run's summary, and writes it at the start, at the end and on a failure.

    The status is ``running``, ``exporting`` (training is over; ``model/`` is being written and verified), ``done``
    (``model/`` is verified), ``stopped`` (by a signal, and resumable) or ``failed``.

    Args:
        path: The JSON file.
        facts: Entries that are known before the run: method, model, strategy, peft, seed, ….
        best: Keeps the best weights; ``None`` if the run ends with its last ones.
    """

    def __init__(self, *, path: Path, facts: Mapping[str, Any], best: BestWeights | None):
        self.path, self.facts, self.best = Path(path), dict(facts), best
        self.status = "running"
        self.initial_metrics: dict[str, float] = {}
        self.metrics: dict[str, float] = {}
        self.steps = 0
        self._clocks = {"wall": 0.0, "train": 0.0}
        self._running: dict[str, float] = {}

    # --- state that a resumed run restores ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The first and latest metrics and the elapsed times, as plain numbers."""
        clocks = {name: self._seconds(name) for name in self._clocks}
        return {"initial_metrics": self.initial_metrics, "metrics": self.metrics, "clocks": clocks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the clocks, and restore the metrics."""
        self.initial_metrics, self.metrics = dict(state["initial_metrics"]), dict(state["metrics"])
        self._clocks = dict(state["clocks"])

    # --- hooks --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the wall clock and write the status ``running``."""
        self._start("wall")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._write_on_first_rank(trainer, "running")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the validation before the first step."""
        self.initial_metrics = _floats(trainer.callback_metrics)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of training time."""
        self._start("train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause the clock of training time."""
        self._pause("train")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Resume the clock of training time and keep the results."""
        if not trainer.sanity_checking:
            self._start("train")
            self.collect(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the metrics of this step in the checkpoint."""
        self.collect(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training time."""
        self._pause("train")
        self.collect(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the status ``exporting``; the summary is written again after the export of the model."""
        self._write_on_first_rank(trainer, "exporting")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the status ``stopped`` or ``failed``."""
        stopped = isinstance(exception, (Stopped, KeyboardInterrupt))
        self._pause("train")
        self.collect(trainer)
        self._write_on_first_rank(trainer, "stopped" if stopped else "failed")

    def collect(self, trainer: Trainer) -> None:
        """Update every metric to its latest value."""
        self.metrics |= _floats(trainer.callback_metrics)

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(self, status: str, **more: Any) -> dict[str, Any]:
        """Write the summary.

        Args:
            status: ``running``, ``exporting``, ``done``, ``stopped`` or ``failed``.
            **more: Further entries; ``metrics`` is merged into the final metrics.

        Returns:
            The summary as written.
        """
        self.status = status
        self.metrics |= more.pop("metrics", {})
        summary = self.summary() | more
        write_text(self.path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return summary

    def summary(self) -> dict[str, Any]:
        """The current summary, with JSON values only."""
        done = {name: self.metrics.get(f"progress/{name}", 0) for name in ("epoch", "tokens", "supervised_tokens")}
        seconds = self._seconds("train")
        device_mib, host_mib = peak_memory_mib()
        return {
            "status": self.status,
            **self.facts,
            "steps": self.steps,
            "epochs": done["epoch"],
            "tokens": int(done["tokens"]),
            "supervised_tokens": int(done["supervised_tokens"]),
            "wall_seconds": round(self._seconds("wall"), 3),
            "tokens_per_second": round(done["tokens"] / seconds, 1) if seconds else None,
            "peak_memory_mib": device_mib if device_mib is not None else host_mib,
            "peak_host_memory_mib": host_mib,
            "best": self.best.facts() if self.best else None,
            "metrics": _json(self.metrics),
            "initial_metrics": _json(self.initial_metrics),
            "commit": commit(),
            "versions": versions(),
        }

    def _write_on_first_rank(self, trainer: Trainer, status: str) -> None:
        self.steps = trainer.global_step
        if trainer.is_global_zero:
            self.write(status)

    def _start(self, clock: str) -> None:
        self._running.setdefault(clock, time.monotonic())

    def _pause(self, clock: str) -> None:
        self._clocks[clock] = self._seconds(clock)
        self._running.pop(clock, None)

    def _seconds(self, clock: str) -> float:
        now = time.monotonic()
        return self._clocks[clock] + now - self._running.get(clock, now)


def peak_memory_mib() -> tuple[float | None, float]:
    """Peak memory of this process in MiB: allocated on its CUDA device (None without one), and resident on the host."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    device = torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else None
    return device and round(device, 1), round(host, 1)


def commit() -> str | None:
    """Git commit of the package's repository; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _json(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Replace metrics that are not finite by None, since JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
