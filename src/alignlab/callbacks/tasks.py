"""Evaluation by the tasks of the lm-evaluation-harness during training."""

from functools import partial
from typing import Annotated

import lightning
from pydantic import Field

from alignlab.distributed.comm import on_rank_zero
from alignlab.distributed.random_state import random_states, set_random_states
from alignlab.errors import InputError
from alignlab.measures.settings import TaskSettings
from alignlab.measures.tasks import refuse_unknown, run_tasks
from alignlab.methods.base import Method


class Tasks(lightning.Callback):
    """Runs tasks at every validation, and logs ``val/task/NAME/METRIC``. The random state of training is not moved.

    Args:
        settings: Which tasks, and how.
        num_questions: Maximum number of questions of each task; ``None`` for all.

    Raises:
        InputError: No task is named, the harness does not have one, or it is not installed.
    """

    def __init__(self, *, settings: TaskSettings, num_questions: Annotated[int, Field(ge=1)] | None):
        if not settings.names:
            raise InputError("callbacks=tasks", "no task is named", "Type callbacks.tasks.names=[gsm8k]")
        refuse_unknown(settings)
        self.settings, self.num_questions = settings, num_questions

    def on_validation_epoch_end(self, trainer: lightning.Trainer, method: Method) -> None:
        """Run the tasks on rank 0, with the whole policy, and log their means on every rank."""
        if method.head != "language_model":
            return
        states = random_states()
        with method.sharding.whole(method.policy), method.scoring_mode():
            arguments = (method.policy, trainer.datamodule.tokenizer, self.settings, self.num_questions)
            found = on_rank_zero(partial(run_tasks, *arguments))
        set_random_states(states)
        method.log_dict({f"val/task/{name}": one.value for name, one in found.items()})
