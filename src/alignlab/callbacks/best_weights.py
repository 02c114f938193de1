"""Keeps the weights of the validation with the best value of a metric, in the format of ``model/``.

The weights lie in ``checkpoints/best``, and every checkpoint has them too (as hard links where the file system allows
it). So a run that resumes from any checkpoint, in its own folder or as a branch, continues with the best weights that
were known then, and finds the same ones as a run without interruption.
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from alignlab.callbacks.export_trial import EXAMPLE, ModelWriter
from alignlab.errors import InputError
from alignlab.metrics import Mode
from alignlab.models.export import install, verify_logits
from alignlab.run_folder.storage import BEST, copy_linked, restore_best

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """The best measurement so far.

    Args:
        metric: Name of the metric.
        mode: Whether the smallest or the largest value is the best.
        step: Number of optimizer steps before the measurement; 0 for the weights before training.
        value: Value of the metric.
        logits: Of the kept weights for ``EXAMPLE``, to compare with what is written in the end.
    """

    metric: str
    mode: Mode
    step: int
    value: float
    logits: Tensor


class BestWeights(Callback):
    """Compares each validation, also the one before the first step, with the best so far; keeps the weights if better.

    Of equal values the first is kept; a value that is not finite is never the best.

    Args:
        checkpoints: The run's folder of checkpoints.
        metric: Name of the metric, as it is logged.
        mode: Whether the smallest or the largest value is the best.
        writer: Writes the weights.
    """

    def __init__(self, *, checkpoints: Path, metric: str, mode: Mode, writer: ModelWriter):
        self.checkpoints, self.metric, self.mode, self.writer = Path(checkpoints), metric, mode, writer
        self.kept: Kept | None = None

    def facts(self) -> dict[str, Any] | None:
        """The entry of summary.json: metric, mode, step and value; ``None`` before the first measurement."""
        kept = self.kept
        return kept and {"metric": kept.metric, "mode": kept.mode, "step": kept.step, "value": kept.value}

    # --- state that a resumed run restores ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The best measurement."""
        return dict(vars(self.kept)) if self.kept else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the best measurement, unless it was of another metric or mode."""
        if (state.get("metric"), state.get("mode")) == (self.metric, self.mode):
            self.kept = Kept(**state)
        elif state:
            log.warning("the checkpoint kept the best %s; the best %s counts from here", state["metric"], self.metric)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the weights that this run kept before it was killed: they may be from after its checkpoint."""
        if trainer.is_global_zero:
            restore_best(self.checkpoints, None)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the weights from the checkpoint that the run resumes from."""
        if trainer.is_global_zero:
            restore_best(self.checkpoints, Path(trainer.ckpt_path).parent)

    def add_to(self, method: LightningModule, checkpoint: Path) -> None:
        """Add the best weights to the folder of a checkpoint."""
        if self.kept and method.trainer.is_global_zero:
            copy_linked(self.checkpoints / BEST, checkpoint / BEST)

    # --- hooks --------------------------------------------------------------------------------------------------------

    def on_sanity_check_end(self, trainer: Trainer, method: LightningModule) -> None:
        """Compare the weights before the first step, if all held-out rows were measured.

        Raises:
            InputError: The validation does not log the metric.
        """
        self._measured(trainer)
        if trainer.num_sanity_val_batches == trainer.num_val_batches:
            self._compare(trainer, method)

    def on_train_start(self, trainer: Trainer, method: LightningModule) -> None:
        """Refuse a run without validation.

        Raises:
            InputError: There are no held-out rows.
        """
        if not sum(trainer.num_val_batches):
            instead = "Type data.validation_size=SHARE, or checkpoint.best=null"
            raise InputError(self._asked, "there are no held-out rows to measure it on", instead)

    def on_validation_end(self, trainer: Trainer, method: LightningModule) -> None:
        """Compare the weights of this step."""
        if not trainer.sanity_checking:
            self._compare(trainer, method)

    def publish(self, method: LightningModule, folder: Path) -> float:
        """Write the best weights to ``model/``, and compare them with their logits when they were kept.

        Args:
            method: With its policy, which has other weights by now.
            folder: Replaced as a whole if it exists.

        Returns:
            Largest difference of a logit; 0 on all ranks but the first.

        Raises:
            ExportError: The files are damaged, or give other logits.
        """
        if not method.trainer.is_global_zero:
            return 0.0
        install(self.checkpoints / BEST, folder)
        computed_in, dtype = method.sharding.compute_dtype, self.writer.dtype
        return verify_logits(folder, method.policy, EXAMPLE, self.kept.logits, computed_in, dtype)

    @property
    def _asked(self) -> str:
        return f"checkpoint.best={self.metric}"

    def _measured(self, trainer: Trainer) -> float:
        """The value of the metric in this validation, the same on all ranks."""
        value = trainer.callback_metrics.get(self.metric)
        if value is None:
            names = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
            raise InputError(self._asked, "the validation does not log it", f"It logs {', '.join(names)}")
        return trainer.strategy.broadcast(float(value))

    def _compare(self, trainer: Trainer, method: LightningModule) -> None:
        value, sign = self._measured(trainer), {"min": 1.0, "max": -1.0}[self.mode]
        if not math.isfinite(value) or (self.kept and sign * value >= sign * self.kept.value):
            return
        _, logits = self.writer.write(method, self.checkpoints / BEST)
        trainer.strategy.barrier()
        self.kept = Kept(self.metric, self.mode, trainer.global_step, value, logits.clone())
