"""The callback that starts and closes the resources of a rollout: processes of sampler and rewards, and devices."""

from pathlib import Path

import lightning

from alignlab.methods.base import Method
from alignlab.rollout.data import RolloutData


class RolloutLifetime(lightning.Callback):
    """Prepares the rollout of a run, and closes it when the run ends, also on an error.

    Args:
        rollout: The rollout of the method.
        log_dir: Folder of the logs of servers.
    """

    def __init__(self, rollout: RolloutData, log_dir: Path):
        self.rollout, rollout.log_dir = rollout, log_dir

    def on_fit_start(self, trainer: lightning.Trainer, method: Method) -> None:
        """Move rewards that compute on a device to the device of the run."""
        self.rollout.scorer.to(method.device)

    def on_exception(self, trainer: lightning.Trainer, method: Method, exception: BaseException) -> None:
        """Close the rollout on an error, Ctrl-C or SIGTERM."""
        self.rollout.close()

    def teardown(self, trainer: lightning.Trainer, method: Method, stage: str) -> None:
        """Close the rollout at the end."""
        self.rollout.close()
