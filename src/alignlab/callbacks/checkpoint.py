"""The callback that saves checkpoints, restores random states, and ends the run cleanly on a signal.

It depends on these properties of Lightning:

1. Lightning keeps callbacks of its ``Checkpoint`` class at the end of the list. So all other callbacks have finished
   the step when this one saves, and none draws random numbers in ``on_train_start`` after this one restored them.
2. A checkpoint written before the validation of the same step makes a resumed run skip that validation. If a validation
   is due, the checkpoint is therefore written when it ends.
3. Validation draws random numbers (a loader draws one when its iterator is made, before any hook). The random states
   are restored afterwards, so the interval between validations does not change the training.
4. What is logged through Lightning reaches the loggers after ``on_train_batch_end``. On a signal the checkpoint is
   therefore saved there, and the run ends at the next hook, when the step has been logged.
5. Lightning loads the position of the data loader only while it makes the loader. If something asked for the number of
   batches before (``estimated_stepping_batches``), the loader was made too early, and its position is loaded here.
"""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LastCallback
from lightning.pytorch.loops.utilities import _reset_progress

from alignlab.distributed.random_state import random_states, set_random_states
from alignlab.distributed.stop import StopSignals
from alignlab.distributed.strategies.state import NAMES, AnyState, carried_names, check_complete, names_of
from alignlab.run_folder import storage
from alignlab.system.processes import Stopped


class Checkpoint(LastCallback):
    """Saves the complete training state atomically.

    On SIGTERM or Ctrl-C the optimizer step is finished and logged, a checkpoint is saved, and :class:`Stopped` is
    raised (exit code 143 or 130). A validation that is due or running then is skipped and not repeated. A second
    Ctrl-C, or a signal before the first validation, ends the run immediately.

    Frozen weights are not saved: a checkpoint holds trainable parameters and buffers, which are loaded over the weights
    that the config names. Loading fails if a trainable parameter is missing in the checkpoint, or if the model does not
    have a key of the checkpoint.

    Args:
        folder: The run's folder of checkpoints.
        every_n_steps: Optimizer steps between checkpoints; ``None`` for no such checkpoints. The last step always gets
            one.
        every_n_epochs: Epochs between checkpoints at the end of an epoch; ``None`` for no such checkpoints.
        keep_last: Number of checkpoints to keep, the newest ones.
        additions: Write further content into the folder of a checkpoint; called by every rank with the module and the
            folder.
    """

    def __init__(
        self,
        *,
        folder: Path,
        every_n_steps: int | None,
        every_n_epochs: int | None,
        keep_last: int,
        additions: Sequence[Callable[[LightningModule, Path], Any]],
    ):
        self.folder, self.keep_last, self.additions = Path(folder), keep_last, additions
        self.every_n_steps, self.every_n_epochs = every_n_steps, every_n_epochs
        self._signals = StopSignals()
        self._saved_step = self._written_by = 0
        self._epoch = 0.0
        self._stop_signal: int | None = None
        self._before_validation: dict[str, Any] | None = None

    # --- content of a checkpoint, and checks when it is loaded --------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Allow checkpoints without frozen weights; :meth:`on_load_checkpoint` checks that they are complete."""
        pl_module.strict_loading = False
        trainer.strategy.checkpoint_io = AnyState()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remove frozen weights, and add the names of the optimizer's parameters."""
        weights = checkpoint.get("state_dict", {})
        if any(not parameter.requires_grad for parameter in pl_module.parameters()):
            carried = carried_names(pl_module)
            checkpoint["state_dict"] = {name: weight for name, weight in weights.items() if name in carried}
        if weights:
            checkpoint[NAMES] = [name for group in names_of(trainer.optimizers[0], pl_module) for name in group]
        checkpoint["world_size"] = trainer.world_size

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint is of this model and adapter.

        Raises:
            InputError: A trainable weight is missing in the checkpoint, or the model lacks a weight of the checkpoint.
        """
        self._written_by = checkpoint["world_size"]
        if "state_dict" in checkpoint:
            check_complete(pl_module, checkpoint["state_dict"])

    # --- restoring ----------------------------------------------------------------------------------------------------

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals from here on; they wait until a step ends."""
        self._signals.install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals; restore the random states of a resumed run, after the loaders have drawn random numbers."""
        self._signals.install()
        if self._signals.received:
            raise Stopped(self._signals.received)
        if trainer.ckpt_path is None:
            return
        if trainer.fit_loop._combined_loader_states_to_load:  # point 5 of the module
            trainer.fit_loop._load_combined_loader_states()
            iter(trainer.fit_loop._data_fetcher)
        same_ranks = self._written_by == trainer.world_size
        if same_ranks:
            path = Path(trainer.ckpt_path).parent / _random_name(trainer)
            set_random_states(torch.load(path, weights_only=True))
        self._saved_step = trainer.global_step
        why = f"new random states, since {self._written_by} rank(s) wrote it and {trainer.world_size} resume"
        random = f"random states of {trainer.world_size} rank(s)" if same_ranks else why
        trainer.print(
            f"Resumed after step {trainer.global_step:,}: weights, optimizer, schedule, position in the data, {random}"
        )

    # --- saving and stopping ------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a checkpoint is due or a signal came, unless a validation comes first."""
        validation_is_next = _validation_is_next(trainer)
        if validation_is_next:
            self._before_validation = random_states()
        stopping = trainer.strategy.reduce_boolean_decision(self._signals.received is not None, all=False)
        if (stopping or self._is_due(trainer)) and not validation_is_next:
            self._save(trainer)
        if stopping:
            self._stop_signal = self._signals.received or signal.SIGTERM
            trainer.should_stop = True

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Skip the rest of a validation on a signal. Several ranks finish it, since they may not stop together."""
        if self._signals.received is not None and trainer.world_size == 1:
            self._stop_signal = self._signals.received
            self._skip_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random states from before the validation, and save if a checkpoint is due."""
        if trainer.sanity_checking or self._before_validation is None:
            return
        set_random_states(self._before_validation)
        self._before_validation = None
        if self._is_due(trainer):
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save and stop on a signal that came in the previous step."""
        if self._stop_signal is not None:
            self._skip_validation(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop on a signal."""
        self._raise_if_stopping()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop on a signal; note the epochs done before the step."""
        self._raise_if_stopping()
        self._epoch = pl_module.progress.epoch

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop on a signal that came after the last step; later signals end the process immediately."""
        self._signals.waiting = False
        if trainer.strategy.reduce_boolean_decision(self._signals.received is not None, all=False):
            raise Stopped(self._signals.received or signal.SIGTERM)

    def _skip_validation(self, trainer: Trainer) -> None:
        if self._before_validation is not None:
            _reset_progress(trainer.fit_loop.epoch_loop.val_loop)
            set_random_states(self._before_validation)
            self._save(trainer)
        self._raise_if_stopping()

    def _raise_if_stopping(self) -> None:
        if self._stop_signal is not None:
            raise Stopped(self._stop_signal)

    def _is_due(self, trainer: Trainer) -> bool:
        epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
        last_step = 0 < trainer.max_steps <= trainer.global_step
        last_batch = trainer.is_last_batch and 0 < epochs <= trainer.current_epoch + 1
        at_step = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        return at_step or self._ends_epochs(trainer) or trainer.should_stop or last_step or last_batch

    def _ends_epochs(self, trainer: Trainer) -> bool:
        """Whether this step ends ``every_n_epochs`` epochs of the data; Lightning sees the whole run as one epoch."""
        if self.every_n_epochs is None:
            return False
        before, after = (
            epoch // self.every_n_epochs for epoch in (self._epoch, trainer.lightning_module.progress.epoch)
        )
        return after > before

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
        for add in self.additions:
            add(trainer.lightning_module, partial)
        trainer.save_checkpoint(partial / storage.STATE, weights_only=False)  # ends with a barrier
        if trainer.is_global_zero:
            storage.publish(self.folder, step, world_size=trainer.world_size, keep_last=self.keep_last)
        trainer.strategy.barrier()
        self._saved_step = step


def _random_name(trainer: Trainer) -> str:
    return f"random-{trainer.global_rank:05d}.pt"


def _validation_is_next(trainer: Trainer) -> bool:
    """Whether Lightning validates after this step, by Lightning's own check."""
    epoch_loop = trainer.fit_loop.epoch_loop
    if not epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
        return False
    epoch_loop.val_loop.setup_data()  # no effect if already done; without loaders there is no validation
    return not epoch_loop.val_loop.skip
