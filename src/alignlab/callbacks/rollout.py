"""What a rollout holds while a run goes on: processes of sampler and rewards, and the device of rewards."""

from pathlib import Path

import lightning

from alignlab.methods.base import Method
from alignlab.rollout.data import RolloutData


class RolloutLifetime(lightning.Callback):
    """Readies a rollout for a run, and closes it when the run ends, however it does.

    Args:
        rollout: Of the method.
        log_dir: Takes what servers print.
    """

    def __init__(self, rollout: RolloutData, log_dir: Path):
        self.rollout, rollout.log_dir = rollout, log_dir

    def on_fit_start(self, trainer: lightning.Trainer, method: Method) -> None:
        """Let rewards that compute on a device do so on that of the run."""
        self.rollout.scorer.to(method.device)

    def on_exception(self, trainer: lightning.Trainer, method: Method, exception: BaseException) -> None:
        """On an error, Ctrl-C or SIGTERM."""
        self.rollout.close()

    def teardown(self, trainer: lightning.Trainer, method: Method, stage: str) -> None:
        """At the end."""
        self.rollout.close()
