"""What Hydra calls when a sweep begins. Every command names it in its config, so it imports little."""

import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from alignlab.cli.composition.command import refuse
from alignlab.cli.composition.hidden import hide_config
from alignlab.errors import InputError


class Begin(Callback):
    """Stores the folder of the sweep's table. Hydra calls it when a sweep begins, with any launcher."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Store the folder, and hide secrets, since Hydra writes the config there after this.

        Raises:
            SystemExit: Slurm is asked for, and this machine does not have it. Hydra ignores other exceptions here.
        """
        hide_config(config)
        if config.hydra.launcher.get("_target_", "").endswith(".SlurmLauncher") and shutil.which("sbatch") is None:
            why = "there is no sbatch on this machine, so no job can be submitted"
            error = InputError("launcher=slurm", why, "Type it on a login node of the cluster, or launcher=local here")
            raise SystemExit(refuse(error, debug=False))
        Begin.folder = Path(config.run_dir or config.hydra.sweep.dir)
