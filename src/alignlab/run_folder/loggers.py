"""Loggers of a run, each of which logs against ``progress/step``. MLflow and Trackio have modules of their own."""

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
from alignlab.metrics import best_mode
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.metrics_file import AXIS, MetricsFile, on_axis
from alignlab.run_folder.tracker import Tracker, leaves, stored
from alignlab.run_folder.wandb_run import begin, define

WANDB_HOST = "https://api.wandb.ai"

UPLOADS = {"none": (), "config": ("config",), "model": ("config", "model")}
"""Kinds of files that each setting of ``logger.wandb.artifacts`` uploads at the end of a run."""


def csv(*, run_folder: RunFolder) -> MetricsFile:
    """Log to the run's metrics.csv; rows after the checkpoint that the run resumes from are removed."""
    return MetricsFile(path=run_folder.metrics, first_step=run_folder.first_step)


class TensorBoard(TensorBoardLogger, Tracker):
    """Lightning's TensorBoard logger, with optimizer steps as the axis."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics at the optimizer step that they belong to."""
        values = on_axis(metrics, step)
        super().log_metrics(values, int(values[AXIS]))

    def end(self, *, summary: Mapping[str, Any], artifacts: Mapping[str, Iterable[Path]], succeeded: bool) -> None:
        """Add the run to the table of hyper-parameters: its settings, and the last values of metrics that have a best.

        Lightning's method would draw these values as further points of the curves.
        """
        from torch.utils.tensorboard.summary import hparams

        last = {name: value for name, value in summary.get("metrics", {}).items() if best_mode(name)}
        settings = {name: _plain(value) for name, value in leaves(self.hparams) if value is not None}
        metrics, begins, ends = hparams(settings, {name: value for name, value in last.items() if value is not None})
        writer = self.experiment._get_file_writer()
        for part in (metrics, begins, *([ends] if succeeded else [])):
            writer.add_summary(part)


def tensorboard(*, run_folder: RunFolder) -> TensorBoard:
    """Log to event files in ``tensorboard/``; points after the checkpoint that the run resumes from are hidden.

    A fresh start hides all points that a killed run left there.

    Raises:
        InputError: The package is not installed.
    """
    purge = run_folder.first_step + 1 if run_folder.checkpoint else 0
    folder = run_folder.tensorboard
    try:
        return TensorBoard(
            save_dir=folder.parent, name=folder.name, version="", default_hp_metric=False, purge_step=purge
        )
    except ModuleNotFoundError as error:
        instead = "pip install 'alignlab[tensorboard]', or choose logger=csv"
        raise InputError("logger=tensorboard", "the package tensorboard is not installed", instead) from error


class Wandb(WandbLogger, Tracker):
    """Lightning's W&B logger, with optimizer steps as the axis.

    W&B's own step only increases and would drop what a resumed run logs again, so it is not used, and every curve is
    drawn over ``progress/step``.

    Args:
        uploads: Kinds of files to upload at the end.
        **options: Those of Lightning's logger.
    """

    def __init__(self, *, uploads: Iterable[str] = (), **options: Any):
        super().__init__(**options)
        self.uploads = tuple(uploads)
        self._defined: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics with the optimizer step that they belong to; new names are defined first."""
        values = on_axis(metrics, step)
        for name in values.keys() - self._defined:
            define(self.experiment, name)
        self._defined |= values.keys()
        self.experiment.log(values)

    def end(self, *, summary: Mapping[str, Any], artifacts: Mapping[str, Iterable[Path]], succeeded: bool) -> None:
        """Log the results to the summary, upload the files that were asked for, and end the W&B run."""
        run = self.experiment
        run.summary.update(dict(summary))
        chosen = [Path(path) for kind in self.uploads for path in artifacts.get(kind, ())]
        for path in filter(Path.exists, chosen):
            _log_artifact(run, path)
        run.finish(exit_code=0 if succeeded else 1)


def wandb(
    *,
    project: str | None,
    entity: str | None,
    group: str | None,
    name: str | None,
    tags: Iterable[str],
    mode: Literal["auto", "online", "offline", "disabled"],
    artifacts: Literal["none", "config", "model"],
    run_folder: RunFolder,
) -> Wandb:
    """Log to W&B, on rank 0 only: one W&B run per job, which a resumed job continues.

    What is None here is read from W&B's own environment variables, such as ``WANDB_PROJECT``.

    Args:
        project: W&B project; None for ``alignlab`` if the environment names none.
        entity: User or team; None for the default one.
        group: Name of the group of runs that W&B shows together.
        name: Name that W&B shows; None for the name of the run folder.
        tags: Labels.
        mode: ``auto`` is online if a user is logged in, otherwise offline without a prompt; ``wandb sync`` uploads an
            offline run later.
        artifacts: What is uploaded at the end: nothing, the config and the plots, or also the trained model.
        run_folder: Folder to which W&B writes, and in which the id of the W&B run is stored.

    Raises:
        InputError: ``online`` is asked for and no user is logged in, or W&B refuses the key or a name.
    """
    if rank_zero_only.rank != 0:
        return Wandb()
    import wandb as library

    if library.run is not None:  # left by an earlier job in this process that did not finish
        library.finish(exit_code=1)
    mode = wandb_mode(mode)
    if mode == "online" and not is_logged_in():
        instead = "Type wandb login, or logger.wandb.mode=auto, which is offline without a key"
        raise InputError("logger=wandb with mode=online", "nobody is logged in at W&B here", instead)
    run = begin(
        mode,
        project=project or os.environ.get("WANDB_PROJECT") or "alignlab",
        entity=entity,
        group=group,
        name=name or os.environ.get("WANDB_NAME") or run_folder.path.name,
        tags=list(tags) or None,
        dir=run_folder.path,
        id=stored(run_folder.wandb_id, lambda: secrets.token_hex(4)),
        resume="allow",
    )
    run.define_metric("*", step_metric=AXIS)
    return Wandb(uploads=UPLOADS[artifacts], save_dir=str(run_folder.path), experiment=run)


def wandb_mode(mode: str) -> str:
    """Resolve ``auto``: ``WANDB_MODE`` if it is set, otherwise online if a user is logged in, otherwise offline."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if is_logged_in() else "offline")


def is_logged_in() -> bool:
    """Whether W&B finds a key without a prompt: in the environment, or in the netrc file of ``wandb login``."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", WANDB_HOST)).netloc
    files = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_has_login(path, host) for path in files)


def close_loggers(
    loggers: Iterable[Logger], *, summary: Mapping[str, Any], artifacts: Mapping[str, Iterable[Path]], succeeded: bool
) -> None:
    """Log the results to the trackers and end their runs, so that the next job of a sweep gets a new one.

    Args:
        loggers: All loggers of the run; trackers are told the results.
        summary: Final values by name, nested or not.
        artifacts: Files and folders by their kind in ``UPLOADS``; paths that do not exist are skipped.
        succeeded: Whether the run is shown as finished or as crashed.
    """
    for logger in loggers:
        if isinstance(logger, Tracker) and rank_zero_only.rank == 0:
            logger.end(summary=summary, artifacts=artifacts, succeeded=succeeded)
        logger.save()


def _log_artifact(run: Any, path: Path) -> None:
    import wandb as library

    artifact = library.Artifact(f"{run.id}-{path.stem}", type="model" if path.is_dir() else "result")
    (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
    run.log_artifact(artifact)


def _plain(value: Any) -> bool | int | float | str:
    """A value as TensorBoard takes it; a list as text."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def _has_login(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
