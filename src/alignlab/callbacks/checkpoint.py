"""The callback that saves checkpoints, restores random states and leaves cleanly on a signal.

What Lightning does, and what follows from it:

1. Lightning keeps callbacks of its ``Checkpoint`` class at the end of the list, so everybody else has finished with the
   step when this one saves, and nobody draws random numbers in ``on_train_start`` after this one restored them.
2. A checkpoint written before the validation of the same step makes a resumed run skip that validation. So where a
   validation is due, the checkpoint is written when it ends.
3. Validation draws random numbers (a loader draws one when its iterator is made, before any hook). They are put
   back afterwards, so that how often a run validates does not change what it learns.
4. Metrics of a step reach the loggers after ``on_train_batch_end``. So on a signal the checkpoint is saved there, and
   the run is left at the next hook, when the step has been logged.
5. Lightning loads the position of the data loader only while it makes the loader; whoever asked for the number of
   batches before (``estimated_stepping_batches``) made it too early. It is then loaded here.
"""

import signal
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LastCallback
from lightning.pytorch.loops.utilities import _reset_progress
from pydantic import Field

from alignlab.distributed.random_state import random_states, set_random_states
from alignlab.distributed.stop import StopSignals
from alignlab.distributed.strategies.state import NAMES, AnyState, carried_names, check_complete, names_of
from alignlab.run_folder import storage
from alignlab.run_folder.metrics_file import MetricsFile
from alignlab.system.processes import Stopped


class Checkpoint(LastCallback):
    """Saves the complete training state, whole or not at all.

    SIGTERM or Ctrl-C: the optimizer step is finished and logged, a checkpoint is saved, :class:`Stopped` is raised
    (exit code 143 or 130). A validation that is due at that moment, or running, is given up and not repeated. A second
    Ctrl-C, or a signal before the first validation, ends the run at once.

    Frozen weights are not written where there are any: a checkpoint then holds trainable parameters and buffers. They
    are loaded over the weights that the config names, and the load is refused unless each trainable key was there and
    each key of the checkpoint has a place.

    Args:
        folder: The run's folder of checkpoints.
        every_n_steps: Optimizer steps between checkpoints; the last step always gets one.
        keep_last: Newest checkpoints to keep.
    """

    def __init__(
        self, *, folder: Path, every_n_steps: Annotated[int, Field(gt=0)], keep_last: Annotated[int, Field(gt=0)]
    ):
        self.folder, self.every_n_steps, self.keep_last = Path(folder), every_n_steps, keep_last
        self._signals = StopSignals()
        self._saved_step = self._written_by = 0
        self._leaving: int | None = None
        self._before_validation: dict[str, Any] | None = None

    # --- what is written and how a load is checked --------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let a checkpoint without frozen weights be loaded; :meth:`on_load_checkpoint` checks that it is complete."""
        pl_module.strict_loading = False
        trainer.strategy.checkpoint_io = AnyState()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out; name the optimizer's parameters."""
        weights = checkpoint.get("state_dict", {})
        if any(not parameter.requires_grad for parameter in pl_module.parameters()):
            carried = carried_names(pl_module)
            checkpoint["state_dict"] = {name: weight for name, weight in weights.items() if name in carried}
        if weights:
            checkpoint[NAMES] = [name for group in names_of(trainer.optimizers[0], pl_module) for name in group]
        checkpoint["world_size"] = trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model or adapter.

        Raises:
            InputError: A trainable weight is not in the checkpoint, or the checkpoint holds one that the model has not.
        """
        self._written_by = checkpoint["world_size"]
        if "state_dict" in checkpoint:
            check_complete(pl_module, checkpoint["state_dict"])

    # --- restoring ----------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals, which wait from here on."""
        self._signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals; put the random states of a resumed run back, after the loaders have drawn theirs."""
        self._signals.install()
        if self._signals.received:
            raise Stopped(self._signals.received)
        if trainer.ckpt_path is None:
            return
        if trainer.fit_loop._combined_loader_states_to_load:  # point 5 at the top
            trainer.fit_loop._load_combined_loader_states()
            iter(trainer.fit_loop._data_fetcher)
        same_ranks = self._written_by == trainer.world_size
        if same_ranks:
            path = Path(trainer.ckpt_path).parent / _random_name(trainer)
            set_random_states(torch.load(path, weights_only=True))
        self._saved_step = trainer.global_step
        why = f"new random states, since {self._written_by} rank(s) wrote it and {trainer.world_size} go on"
        random = f"random states of {trainer.world_size} rank(s)" if same_ranks else why
        trainer.print(
            f"Resumed after step {trainer.global_step:,}: weights, optimizer, schedule, position in the data, {random}"
        )

    # --- saving and leaving -------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due and no validation comes first; on a signal, save in any case."""
        validation_comes = _validation_comes(trainer)
        if validation_comes:
            self._before_validation = random_states()
        stopping = trainer.strategy.reduce_boolean_decision(self._signals.received is not None, all=False)
        if (stopping or self._is_due(trainer)) and not validation_comes:
            _keep_metrics(trainer)
            self._save(trainer)
        if stopping:
            self._leaving = self._signals.received or signal.SIGTERM
            trainer.should_stop = True

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Give a running validation up on a signal. Several ranks finish it: they may not agree on the moment."""
        if self._signals.received is not None and trainer.world_size == 1:
            self._leaving = self._signals.received
            self._give_up_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the random states back that the validation used up; save if a checkpoint is due."""
        if trainer.sanity_checking or self._before_validation is None:
            return
        set_random_states(self._before_validation)
        self._before_validation = None
        if self._is_due(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and leave on a signal that came in the step before."""
        if self._leaving is not None:
            self._give_up_validation(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave on a signal."""
        self._leave()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave on a signal."""
        self._leave()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave on a signal that came after the last step; later ones end the process at once."""
        self._signals.waiting = False
        if trainer.strategy.reduce_boolean_decision(self._signals.received is not None, all=False):
            raise Stopped(self._signals.received or signal.SIGTERM)

    def _give_up_validation(self, trainer: Trainer) -> None:
        if self._before_validation is not None:
            _reset_progress(trainer.fit_loop.epoch_loop.val_loop)
            set_random_states(self._before_validation)
            self._save(trainer)
        self._leave()

    def _leave(self) -> None:
        if self._leaving is not None:
            raise Stopped(self._leaving)

    def _is_due(self, trainer: Trainer) -> bool:
        epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
        last_step = 0 < trainer.max_steps <= trainer.global_step
        last_batch = trainer.is_last_batch and 0 < epochs <= trainer.current_epoch + 1
        return trainer.global_step % self.every_n_steps == 0 or trainer.should_stop or last_step or last_batch

    def _save(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step:
            return
        states = random_states()
        if trainer.is_global_zero:
            storage.new_partial(self.folder, step)
        trainer.strategy.barrier()
        partial = storage.partial_folder(self.folder, step)
        torch.save(states, partial / _random_name(trainer))
        trainer.save_checkpoint(partial / storage.STATE, weights_only=False)  # ends with a barrier
        if trainer.is_global_zero:
            storage.publish(self.folder, step, world_size=trainer.world_size, keep_last=self.keep_last)
        trainer.strategy.barrier()
        self._saved_step = step


def _keep_metrics(trainer: Trainer) -> None:
    """Bring the step's row to its file before the checkpoint: Lightning logs it later, when the run may be killed."""
    connector = trainer._logger_connector
    for logger in trainer.loggers if connector.should_update_logs else ():
        if isinstance(logger, MetricsFile):
            logger.log_metrics(connector.metrics["log"], trainer.global_step - 1)


def _random_name(trainer: Trainer) -> str:
    return f"random-{trainer.global_rank:05d}.pt"


def _validation_comes(trainer: Trainer) -> bool:
    """Whether Lightning validates after this step, asked in Lightning's own words."""
    epoch_loop = trainer.fit_loop.epoch_loop
    if not epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
        return False
    epoch_loop.val_loop.setup_data()  # harmless when done already; an empty list of loaders validates nothing
    return not epoch_loop.val_loop.skip
