"""The files of an evaluation, and its results in the tracker of the run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.assemble import Config
from alignlab.config.build import build
from alignlab.errors import InputError
from alignlab.evaluation.rows import Set
from alignlab.measures.estimates import Estimate
from alignlab.run import read_config
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.location import names_in
from alignlab.run_folder.loggers import close_loggers
from alignlab.system.disk import write_text

RESULTS = "evaluation.json"
COMPLETIONS = "completions.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        results: Estimates by metric, for each set of rows.
        completions: Sampled completions with what they are worth, in the order of the prompts.
    """

    results: Mapping[Set, Mapping[str, Estimate]]
    completions: Sequence[Mapping[str, Any]]


def refuse_files_of_others(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier evaluation, before anything is measured.

    Raises:
        InputError: It does.
    """
    asked, instead = f"to={folder}", "Name a folder that is new, empty, or holds an earlier evaluation"
    if folder.exists() and not folder.is_dir():
        raise InputError(asked, "it is a file", instead)
    foreign = names_in(folder) - {RESULTS, COMPLETIONS}
    if not foreign and names_in(folder) and not is_evaluation(folder / RESULTS):
        foreign = names_in(folder)
    if foreign:
        why = f"it holds files that are not of an evaluation: {', '.join(sorted(foreign)[:3])}"
        raise InputError(asked, why, instead)


def is_evaluation(path: Path) -> bool:
    """Whether a file holds the results of an evaluation."""
    try:
        return {"results", "config"} <= json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        return False


def write_results(evaluation: Evaluation, config: Config, folder: Path) -> None:
    """Write ``evaluation.json`` and ``completions.jsonl``.

    Args:
        evaluation: What came out.
        config: What was asked.
        folder: Made if it is missing; one that ``refuse_files_of_others`` accepts.
    """
    results = {name: asdict(found) for name, found in by_name(evaluation).items()}
    write_text(folder / RESULTS, json.dumps({"results": results, "config": config}, indent=1, ensure_ascii=False))
    (folder / COMPLETIONS).unlink(missing_ok=True)  # of an earlier evaluation
    if evaluation.completions:
        lines = (json.dumps(one, ensure_ascii=False) for one in evaluation.completions)
        write_text(folder / COMPLETIONS, "".join(f"{line}\n" for line in lines))


def by_name(evaluation: Evaluation) -> dict[str, Estimate]:
    """The estimates as ``METRIC``, and those of a named set as ``SET/METRIC``."""
    results = evaluation.results.items()
    return {
        metric if name is None else f"{name}/{metric}": found
        for name, metrics in results
        for metric, found in metrics.items()
    }


def log_to_tracker(evaluation: Evaluation, run: Path) -> bool:
    """Add the results to the W&B run of a run, as ``evaluation/METRIC`` of its summary.

    Args:
        evaluation: What came out.
        run: Folder of the run.

    Returns:
        Whether the run has one, and is done: another one is being written, or W&B would show it as finished.
    """
    folder, node = RunFolder(run), (read_config(run / "config.yaml")["logger"] or {}).get("wandb")
    if node is None or not folder.wandb_id.is_file() or folder.status != "done":
        return False
    values = {f"evaluation/{name}": found.value for name, found in by_name(evaluation).items()}
    logger = build("logger.wandb", node, run_folder=folder)
    close_loggers([logger], summary=values, artifacts={}, succeeded=True)
    return True
