"""MLflow as a tracker: one MLflow run per job, which a resumed job continues."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alignlab.errors import InputError
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.metrics_file import AXIS, on_axis
from alignlab.run_folder.tracker import Tracker, facts, is_number, stored
from alignlab.system.paths import reason


class MLflow(MLFlowLogger, Tracker):
    """Lightning's MLflow logger, with optimizer steps as the axis."""

    last_step = 0

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Log the settings of a new run; a resumed run keeps its own, since MLflow refuses to change them."""
        if not self.experiment.get_run(self.run_id).data.params:
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at the optimizer step that they belong to; MLflow allows no ``@`` in names."""
        values = on_axis(metrics, step)
        self.last_step = int(values[AXIS])
        super().log_metrics({name.replace("@", "_at_"): value for name, value in values.items()}, self.last_step)

    def end(self, *, summary: Mapping[str, Any], artifacts: Mapping[str, Iterable[Path]], succeeded: bool) -> None:
        """Log the facts of the summary, numbers as metrics and others as tags, and end the MLflow run."""
        found = facts(summary)
        numbers = {name.replace("@", "_at_"): value for name, value in found.items() if is_number(value)}
        super().log_metrics(numbers, self.last_step)
        for name in found.keys() - numbers.keys():
            self.experiment.set_tag(self.run_id, name, found[name])
        self.experiment.set_terminated(self.run_id, "FINISHED" if succeeded else "FAILED")


def mlflow(
    *,
    tracking_uri: str | None,
    experiment: str | None,
    name: str | None,
    tags: Iterable[str],
    run_folder: RunFolder,
) -> MLflow | DummyLogger:
    """Log to MLflow, on rank 0 only. MLflow's own report of its use is switched off unless the environment sets it.

    Args:
        tracking_uri: Server or database; None for ``MLFLOW_TRACKING_URI``, or else MLflow's own default, which is a
            database in the working folder.
        experiment: Name of the experiment; None for ``MLFLOW_EXPERIMENT_NAME``, or else ``alignlab``.
        name: Name that MLflow shows; None for the name of the run folder.
        tags: Labels.
        run_folder: Folder in which the id of the MLflow run is stored.

    Raises:
        InputError: The package is not installed, or MLflow refuses the address or a name.
    """
    if rank_zero_only.rank != 0:
        return DummyLogger()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it when it is imported
    try:
        import mlflow as library
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        instead = "pip install 'alignlab[mlflow]', or choose logger=csv"
        raise InputError("logger=mlflow", "the package mlflow is not installed", instead) from error
    uri = tracking_uri or library.get_tracking_uri()
    options = {
        "experiment_name": experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "alignlab",
        "run_name": name or run_folder.path.name,
        "tracking_uri": uri,
        "tags": dict.fromkeys(tags, "true"),
    }

    def is_known(run_id: str) -> bool:
        try:
            return bool(library.MlflowClient(uri).get_run(run_id))
        except MlflowException:
            return False

    try:
        run_id = stored(run_folder.mlflow_id, lambda: str(MLflow(**options).run_id), is_known)
        logger = MLflow(**options, run_id=run_id)
        logger.experiment.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        asked, instead = f"logger=mlflow with tracking_uri={uri}", "Correct it, or choose logger=csv"
        raise InputError(asked, reason(error), instead) from error
    return logger
