"""Logging of training steps."""

from collections.abc import Mapping

import lightning
import torch


def log_step(trainer: lightning.Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Log the metrics of an optimizer step at once, so that they are on disk before the checkpoint of the step.

    Callbacks find them in ``trainer.callback_metrics``, as if the module had called ``log_dict``. That would copy every
    metric, which took as long as the update of a model of 3 million parameters, and log after the callbacks.

    Args:
        trainer: Its loggers get the metrics, every ``log_every_n_steps``.
        metrics: Metrics by name.
        step: Number of optimizer steps done.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    every = trainer.log_every_n_steps
    if every and (step % every == 0 or trainer.should_stop):
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step - 1)  # Lightning counts from 0
            logger.save()
