"""Validation after the last optimizer step, whatever the interval between validations."""

from typing import Any

import lightning


class ValidateAtEnd(lightning.Callback):
    """Asks Lightning to stop at the last step, since it validates before it stops."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """At the last step only."""
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True
