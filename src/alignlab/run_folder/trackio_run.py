"""Trackio as a tracker: one Trackio run per job, which a resumed job continues."""

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger, Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alignlab.errors import InputError
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.metrics_file import AXIS, on_axis
from alignlab.run_folder.tracker import Tracker, facts, is_number, stored
from alignlab.system.paths import reason


class Trackio(Logger, Tracker):
    """A logger of a Trackio run, with optimizer steps as the axis.

    Args:
        run: The Trackio run.
    """

    def __init__(self, *, run: Any):
        super().__init__()
        self._run, self.last_step = run, 0

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._run.project

    @property
    def version(self) -> str:
        """Name of the Trackio run."""
        return self._run.name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The Trackio run."""
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Add the settings to the config of the run, which Trackio stores with the first metrics."""
        self._run.config.update(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at the optimizer step that they belong to."""
        values = on_axis(metrics, step)
        self.last_step = int(values[AXIS])
        self._run.log(values, step=self.last_step)

    def end(self, *, summary: Mapping[str, Any], artifacts: Mapping[str, Iterable[Path]], succeeded: bool) -> None:
        """Log the numbers of the summary at the last step, and end the Trackio run, which has no status."""
        self._run.log({name: value for name, value in facts(summary).items() if is_number(value)}, step=self.last_step)
        self._run.finish()


def trackio(
    *, project: str | None, group: str | None, name: str | None, run_folder: RunFolder
) -> Trackio | DummyLogger:
    """Log to Trackio, on rank 0 only: to this machine, or to the space or server that Trackio's environment names.

    Trackio finds a run by its name in a project, so the name ends in characters of its own.

    Args:
        project: Trackio project; None for ``TRACKIO_PROJECT``, or else ``alignlab``.
        group: Name of the group of runs that Trackio shows together.
        name: Beginning of the name that Trackio shows; None for the name of the run folder.
        run_folder: Folder in which the name of the Trackio run is stored.

    Raises:
        InputError: The package is not installed, or Trackio refuses the name of the project or the environment.
    """
    if rank_zero_only.rank != 0:
        return DummyLogger()
    try:
        import trackio as library
    except ModuleNotFoundError as error:
        instead = "pip install 'alignlab[trackio]', or choose logger=csv"
        raise InputError("logger=trackio", "the package trackio is not installed", instead) from error
    own_name = stored(run_folder.trackio_name, lambda: f"{name or run_folder.path.name}-{secrets.token_hex(2)}")
    project = project or os.environ.get("TRACKIO_PROJECT") or "alignlab"
    try:
        run = library.init(project, name=own_name, group=group, resume="allow", embed=False)
    except (ValueError, OSError) as error:
        asked, instead = f"logger=trackio with project={project}", "Correct it, or choose logger=csv"
        raise InputError(asked, reason(error), instead) from error
    return Trackio(run=run)
