"""A callback that times the steps of ``train.py`` from inside; used by ``against_trl.py``."""

import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import lightning

TICKS = os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Seconds of all CPUs that any process has used since the machine started."""
    user, nice, system, _, _, interrupts, soft, steal = map(
        float, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft + steal) / TICKS


def resident_peak_mib() -> float:
    """Largest resident set of this process in MiB since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


class StepClock(lightning.Callback):
    """Writes seconds and counts of every step to a file.

    Args:
        to: The file, in JSON.
    """

    def __init__(self, *, to: str):
        self.to, self.steps = Path(to), []

    def on_train_start(self, trainer: lightning.Trainer, method: Any) -> None:
        """Start the clock, and forget the peak of memory so far."""
        Path("/proc/self/clear_refs").write_text("5")
        self.last = self._now()

    def on_train_batch_end(self, trainer: lightning.Trainer, method: Any, outputs: Any, batch: Any, index: int) -> None:
        """Note a step: its time, and its tokens and completions as a padded trainer counts them, whole paths."""
        now = self._now()
        seconds, busy, own = (after - before for before, after in zip(self.last, now, strict=True))
        micro_batches = [micro for micro in batch.micro_batches if micro.counted]
        lengths = [micro.inputs["position_ids"].flatten()[micro.last_positions] + 1 for micro in micro_batches]
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.steps.append(
            {
                "seconds": seconds,
                "others": max(0.0, busy - own) / (seconds * os.cpu_count()),
                "tokens": sum(int(length.sum()) for length in lengths),
                "unique_tokens": sum(micro.num_tokens for micro in micro_batches),
                "supervised_tokens": sum(micro.labels.numel() for micro in micro_batches),
                "groups": sum(len(micro.group_ids.unique()) for micro in micro_batches),
                "rollout_seconds": logged.get("time/rollout", 0.0),
                "inside_seconds": logged.get("train/step_seconds", 0.0),
                "loss": logged["train/loss"],
            }
        )
        self.last = self._now()

    def on_train_end(self, trainer: lightning.Trainer, method: Any) -> None:
        """Write the file."""
        self.to.write_text(json.dumps({"steps": self.steps, "peak_mib": resident_peak_mib()}), encoding="utf-8")

    def _now(self) -> tuple[float, float, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), busy_seconds(), used.ru_utime + used.ru_stime
