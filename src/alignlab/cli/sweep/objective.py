"""The value of a job for sweepers that search, such as Optuna, and the check that they search in its direction."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from alignlab.cli.composition.command import Config
from alignlab.errors import InputError, RunError
from alignlab.metrics import best_mode

DIRECTIONS = {"min": "minimize", "max": "maximize"}
"""Optuna's words."""


class Pending:
    """The value of a job that may still run. ``float`` waits for its end, so that a sweeper can start a batch of jobs.

    Args:
        value: Waits for the job, and returns its value.
    """

    def __init__(self, value: Callable[[], float]):
        self.value = value

    def __float__(self) -> float:
        return self.value()


def is_search() -> bool:
    """Whether the sweeper uses the values of jobs; Hydra's own only runs a list of jobs."""
    return not HydraConfig.get().sweeper._target_.endswith(".BasicSweeper")


def check_objective(config: Config) -> None:
    """Check the metric that a search optimises, and its direction.

    Raises:
        InputError: No such metric is logged, or the sweeper searches for its worst value.
    """
    from alignlab.config.monitors import known_metrics, refuse_unlogged

    name, known, asked = config["objective"], known_metrics(config), direction()
    refuse_unlogged("objective", name, known)
    right = DIRECTIONS.get(best_mode(name, known))
    if None not in (right, asked) and asked != right:
        why = f"the best value of {name} is its {'largest' if right == 'maximize' else 'smallest'}"
        raise InputError(f"hydra.sweeper.direction={asked}", why, f"Type hydra.sweeper.direction={right}")


def direction() -> str | None:
    """``minimize`` or ``maximize``, as the sweeper is set; ``None`` if it has no such setting."""
    found = HydraConfig.get().sweeper.get("direction")
    return None if found is None else str(getattr(found, "name", found))


def worst_value() -> float:
    """The value that the sweeper likes least. Only known while Hydra runs a job."""
    return -math.inf if direction() == "maximize" else math.inf


def value_of(run: Path | None, name: str, worst: float) -> float:
    """The value of a finished job: of its best weights if the run kept the best by this metric, else of its last ones.

    Args:
        run: Folder of the run; ``None`` for a job that failed.
        name: Name of the metric.
        worst: Value of a job that failed, or whose metric is not finite.

    Raises:
        RunError: The run did not log the metric.
    """
    if run is None:
        return worst
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    best, metrics = summary.get("best"), summary["metrics"]
    if best is not None and best["metric"] == name:
        return best["value"]
    if name not in metrics:
        logged = ", ".join(sorted(metric for metric in metrics if metric.startswith("val/")))
        raise RunError(f"a search for objective={name}", f"{run} did not log it", f"It logged {logged}")
    return worst if metrics[name] is None else metrics[name]
