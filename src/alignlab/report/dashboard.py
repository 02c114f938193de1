"""A W&B workspace with the curves that some runs have logged, made by W&B's own library."""

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import InputError
from alignlab.metrics import METRICS, find
from alignlab.report.records import Record
from alignlab.report.results import RANKING
from alignlab.run_folder.metrics_file import AXIS
from alignlab.system.disk import write_text

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

SECTIONS: dict[str, tuple[str, ...]] = {
    "results": RANKING,
    "validation": ("val/",),
    "training": ("train/",),
    "comparisons": ("rewards/", "logps/", "group/", "kto/"),
    "rewards and completions": ("reward/", "completion_tokens/", "truncated_", "zero_std_", "kl", "reward_kl"),
    "policy": ("entropy", "ratio", "clip_fraction", "approx_kl", "value_", "explained_", "rollout/"),
    "time": ("time/", "progress/"),
}
"""Sections of a workspace, in order, with the beginnings of the names of their metrics; what fits none comes last."""

OPEN = ("results", "validation", "training")


def sections(names: Iterable[str]) -> dict[str, list[str]]:
    """Divide metrics among the sections; each is in one of them.

    Args:
        names: Names of logged metrics.
    """
    left, found = sorted({*names} - {AXIS}), {}
    for section, beginnings in SECTIONS.items():
        order = [name for beginning in beginnings for name in left if name.startswith(beginning)]
        found[section] = list(dict.fromkeys(order))
        left = [name for name in left if name not in found[section]]
    return {section: metrics for section, metrics in {**found, "further": left}.items() if metrics}


def make_workspace(records: Sequence[Record], project: str, entity: str | None, name: str) -> "Workspace":
    """Make a workspace with a curve over ``progress/step`` for each metric that one of the runs has logged.

    Args:
        records: The runs.
        project: W&B project.
        entity: User or team; None for the default one.
        name: Name of the workspace.

    Raises:
        InputError: The library is not installed, or the runs have logged nothing.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        instead = 'Type pip install "alignlab[dashboard]"'
        raise InputError("alignlab dashboard", "W&B's library of workspaces is not installed", instead)
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import Section, Workspace, WorkspaceSettings

    logged = {metric for record in records for row in record.rows for metric in row}
    if not logged:
        raise InputError("alignlab dashboard", "these runs have logged nothing", "Name runs that have trained a step")
    made = [
        Section(
            name=section,
            is_open=section in OPEN,
            panels=[LinePlot(title=title(metric), x=AXIS, y=[metric]) for metric in metrics],
        )
        for section, metrics in sections(logged).items()
    ]
    settings = WorkspaceSettings(x_axis=AXIS)
    return Workspace(entity=entity or "", project=project, name=name, sections=made, settings=settings)


def title(metric: str) -> str:
    """Name and unit of a metric."""
    entry = find(metric, METRICS)
    return metric if entry is None or entry.unit == "1" else f"{metric} ({entry.unit})"


def write_json(workspace: "Workspace", path: Path) -> None:
    """Write a workspace as W&B stores it.

    Args:
        workspace: The workspace.
        path: A file that does not exist yet.

    Raises:
        InputError: The file exists, or cannot be written.
    """
    if path.exists():
        raise InputError(f"to={path}", "it exists", "Name a file that does not exist yet")
    try:
        write_text(path, json.dumps(json.loads(workspace._to_model().model_dump_json(by_alias=True)), indent=1))
    except OSError as error:
        raise InputError(f"to={path}", f"it cannot be written: {error}", "Name another file") from error


def tracker_of(records: Sequence[Record]) -> tuple[str | None, str | None]:
    """Project and entity of the runs' W&B runs, as their configs name them.

    Raises:
        InputError: They are in several projects.
    """
    keys = ("logger.wandb.project", "logger.wandb.entity")
    found = list(dict.fromkeys(tuple(record.settings.get(key) for key in keys) for record in records))
    if len(found) > 1:
        names = ", ".join(str(project) for project, _ in found)
        raise InputError("alignlab dashboard", f"these runs are in several projects: {names}", "Type project=NAME")
    return found[0] if found else (None, None)
