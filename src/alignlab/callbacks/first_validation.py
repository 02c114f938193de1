"""The validation before the first optimizer step as the first point of every curve, at step 0."""

import lightning


class LogFirstValidation(lightning.Callback):
    """Logs the validation before training at step 0. Lightning does not log it, and a resumed run does not repeat it.

    A first validation of fewer batches than the later ones (``trainer.num_sanity_val_steps``) is not a point of the
    same curves, so it is not logged.
    """

    def on_sanity_check_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log the results."""
        if trainer.num_sanity_val_batches != trainer.num_val_batches:
            return
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in trainer.callback_metrics.items()}, step=-1)
