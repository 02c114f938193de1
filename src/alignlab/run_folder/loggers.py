"""Trackers of a run: W&B, TensorBoard, CSV. Each takes the run's folder and logs against ``progress/step``."""

import netrc
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from alignlab.errors import InputError
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.metrics_file import AXIS, MetricsFile, on_axis
from alignlab.run_folder.wandb_run import begin
from alignlab.system.disk import write_text

WANDB_HOST = "https://api.wandb.ai"


def csv(*, run_folder: RunFolder) -> MetricsFile:
    """The run's metrics.csv; rows after the checkpoint that the run resumes from are cut."""
    return MetricsFile(path=run_folder.metrics, first_step=run_folder.first_step)


class TensorBoard(TensorBoardLogger):
    """Lightning's logger against our axis."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log at the optimizer step that the metrics belong to."""
        values = on_axis(metrics, step)
        super().log_metrics(values, int(values[AXIS]))


def tensorboard(*, run_folder: RunFolder) -> TensorBoard:
    """Event files in ``tensorboard/``; points after the checkpoint that the run resumes from are hidden.

    Raises:
        InputError: The package is not installed.
    """
    purge = {"purge_step": run_folder.first_step + 1} if run_folder.checkpoint else {}
    folder = run_folder.tensorboard
    try:
        return TensorBoard(save_dir=folder.parent, name=folder.name, version="", default_hp_metric=False, **purge)
    except ModuleNotFoundError as error:
        instead = "pip install 'alignlab[tensorboard]', or choose logger=csv"
        raise InputError("logger=tensorboard", "the package tensorboard is not installed", instead) from error


class Wandb(WandbLogger):
    """Lightning's logger against our axis.

    W&B's own step only counts upwards and would drop what a resumed run logs again, so it is left alone and every curve
    is drawn over ``progress/step``.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log with the optimizer step that the metrics belong to."""
        self.experiment.log(on_axis(metrics, step))


def wandb(
    *,
    project: str,
    entity: str | None,
    group: str | None,
    name: str | None,
    tags: Iterable[str],
    mode: Literal["auto", "online", "offline", "disabled"],
    run_folder: RunFolder,
) -> Wandb:
    """One W&B run per job, the same one when the job is resumed; rank 0 only.

    Args:
        project: W&B project.
        entity: User or team; None for the default one.
        group: Runs to be shown together.
        name: Shown name; None for the run folder's.
        tags: Labels.
        mode: ``auto`` is online where somebody is logged in and offline, without a prompt, where nobody is; an offline
            run is sent later with ``wandb sync``.
        run_folder: Where W&B writes and the run's id is kept.

    Raises:
        InputError: Nobody is logged in though ``online`` is asked for, or W&B refuses the key or a name.
    """
    if rank_zero_only.rank != 0:
        return Wandb(project=project)
    import wandb as library

    if library.run is not None:  # of an earlier job in this process, which did not come to its end
        library.finish(exit_code=1, quiet=True)
    mode = wandb_mode(mode)
    if mode == "online" and not is_logged_in():
        instead = "Type wandb login, or logger.wandb.mode=auto, which is offline without a key"
        raise InputError("logger=wandb with mode=online", "nobody is logged in at W&B here", instead)
    run = begin(
        mode,
        project=project,
        entity=entity,
        group=group,
        name=name or run_folder.path.name,
        tags=list(tags),
        dir=run_folder.path,
        id=_run_id(run_folder),
        resume="allow",
    )
    run.define_metric(AXIS)
    run.define_metric("*", step_metric=AXIS)
    return Wandb(project=project, save_dir=str(run_folder.path), experiment=run)


def wandb_mode(mode: str) -> str:
    """``auto`` as what it means here and now; ``WANDB_MODE`` is the user's word and comes first."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if is_logged_in() else "offline")


def is_logged_in() -> bool:
    """Whether W&B has a key without asking: from the environment, or from a netrc file as ``wandb login`` leaves it."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_HOST)).netloc
    files = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_has_login(path, host) for path in files)


def close_loggers(
    loggers: Iterable[Logger], *, summary: Mapping[str, Any], artifacts: Iterable[Path], succeeded: bool
) -> None:
    """Give the trackers the results and end their runs, so that the next job of a sweep gets one of its own.

    Args:
        loggers: All loggers of the run; only W&B's needs closing.
        summary: Final values by name, nested or not.
        artifacts: Files and folders to keep with the run; those that do not exist are passed over.
        succeeded: Whether the run is shown as finished or as crashed.
    """
    for logger in loggers:
        if isinstance(logger, Wandb) and rank_zero_only.rank == 0:
            run = logger.experiment
            run.summary.update(dict(summary))
            for path in filter(Path.exists, map(Path, artifacts)):
                _log_artifact(run, path)
            run.finish(exit_code=0 if succeeded else 1)
        logger.save()


def _log_artifact(run: Any, path: Path) -> None:
    import wandb as library

    artifact = library.Artifact(f"{run.id}-{path.stem}", type="model" if path.is_dir() else "result")
    (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
    run.log_artifact(artifact)


def _run_id(run_folder: RunFolder) -> str:
    if not run_folder.wandb_id.is_file():
        write_text(run_folder.wandb_id, secrets.token_hex(4))
    return run_folder.wandb_id.read_text(encoding="utf-8")


def _has_login(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
