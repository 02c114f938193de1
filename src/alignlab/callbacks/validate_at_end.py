"""Validation after the last optimizer step, independent of the interval between validations."""

from typing import Any

import lightning


class ValidateAtEnd(lightning.Callback):
    """Sets ``trainer.should_stop`` at the last step, since Lightning then validates before it stops."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Stop at the last step."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
