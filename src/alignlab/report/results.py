"""What came out: the metric that ranks runs, settings ranked over seeds, and curves with their spread."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.errors import InputError, nearest
from alignlab.metrics import Mode, best_mode
from alignlab.report.records import Record
from alignlab.report.settings import SEED, differing, pooled
from alignlab.run_folder.metrics_file import AXIS

RANKING = ("val/reward", "val/exact_match", "val/rewards/accuracies", "val/accuracy", "reward/mean", "val/loss")
"""Metrics that rank runs if none is named: the first that a finished run has."""

CURVES = (
    *("val/exact_match", "val/reward", "reward/mean", "val/rewards/accuracies", "val/loss", "train/loss"),
    *("rewards/margins", "rewards/accuracies", "kl", "entropy", "completion_tokens/mean", "truncated_fraction"),
    *("train/token_accuracy", "train/grad_norm", "train/lr", "train/tokens_per_second"),
)
"""Metrics that are drawn first; the others follow by name."""


@dataclass(frozen=True)
class Ranked:
    """Runs that differ by their seed only, and their results.

    Args:
        label: Their settings.
        records: The runs.
        values: Final value of the metric by seed.
        mean: Mean over the runs.
        std: Sample standard deviation over the runs; NaN for one run.
        difference: Mean difference to the best settings over the seeds that both have; NaN if there are none.
        error: Standard error of the difference; NaN for fewer than two seeds.
        num_pairs: Number of seeds that both have.
    """

    label: str
    records: Sequence[Record]
    values: Mapping[str, float]
    mean: float
    std: float
    difference: float = math.nan
    error: float = math.nan
    num_pairs: int = 0


@dataclass(frozen=True)
class Curve:
    """A metric over steps, of runs that differ by their seed only.

    Args:
        steps: Optimizer steps.
        mean: Mean over the runs that logged the step.
        low: Smallest value.
        high: Largest value.
    """

    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Results:
    """What a report shows.

    Args:
        records: All runs.
        columns: Settings that differ; see ``settings.differing``.
        ranking: Settings ranked by the metric.
        metric: Metric that ranks.
        mode: Which value of it is the best.
    """

    records: Sequence[Record]
    columns: Mapping[str, Sequence[Any]]
    ranking: Sequence[Ranked]
    metric: str
    mode: Mode

    @property
    def order(self) -> list[Record]:
        """The runs by their final metric, the best first, and those without it at the end."""
        sign = -1 if self.mode == "max" else 1

        def place(record: Record) -> tuple[bool, float]:
            value = record.metrics.get(self.metric)
            return (value is None, 0.0 if value is None else sign * value)

        return sorted(self.records, key=place)

    @property
    def num_done(self) -> int:
        """Number of runs that are done."""
        return sum(record.status == "done" for record in self.records)

    @property
    def measured(self) -> list[Ranked]:
        """The settings of which a run has the metric."""
        return [one for one in self.ranking if not math.isnan(one.mean)]


def results_of(records: Sequence[Record], metric: str | None) -> Results:
    """Compare and rank runs.

    Args:
        records: Runs.
        metric: As in ``ranking_metric``.

    Raises:
        InputError: As in ``ranking_metric``.
    """
    name, mode = ranking_metric(records, metric)
    columns = differing(records)
    return Results(records, columns, rank(pooled(records, columns), name, mode), name, mode)


def ranking_metric(records: Sequence[Record], asked: str | None) -> tuple[str, Mode]:
    """The metric that ranks the runs, and which value is the best.

    Args:
        records: Runs.
        asked: The user's choice; ``None`` for the first of ``RANKING`` that there is.

    Raises:
        InputError: No run has the metric, or it has no direction.
    """
    known = {name for record in records for name in record.metrics}
    name = asked or next((name for name in RANKING if name in known), "val/loss")
    if asked and asked not in known:
        raise InputError(f"metric={asked}", "no run ends with it", nearest(asked, sorted(known)))
    mode = best_mode(name)
    if mode is None:
        directed = sorted(other for other in known if best_mode(other))
        raise InputError(
            f"metric={asked}", "neither a small nor a large value of it is better", nearest(name, directed)
        )
    return name, mode


def rank(groups: Mapping[str, Sequence[Record]], metric: str, mode: Mode) -> list[Ranked]:
    """Rank settings by the mean of a metric over their runs, and compare each with the best, seed by seed.

    Args:
        groups: Label → runs that differ by their seed only.
        metric: Name of the metric.
        mode: Which value is the best.
    """
    ranked = []
    for text, records in groups.items():
        # Two runs of one seed repeat each other, and count as one: the last that is done, if any is.
        finished = [record for record in records if record.metrics.get(metric) is not None]
        finished.sort(key=lambda record: record.status == "done")
        values = {str(record.settings.get(SEED)): record.metrics[metric] for record in finished}
        mean = statistics.fmean(values.values()) if values else math.nan
        ranked.append(Ranked(text, records, values, mean, _std([*values.values()])))
    sign = -1 if mode == "max" else 1
    ranked.sort(key=lambda one: (math.isnan(one.mean), sign * one.mean))
    return [_compared(one, ranked[0]) for one in ranked]


def _compared(one: Ranked, best: Ranked) -> Ranked:
    differences = [value - best.values[seed] for seed, value in one.values.items() if seed in best.values]
    if one is best or not differences:
        return one
    spread = _std(differences) / math.sqrt(len(differences))
    return Ranked(
        one.label, one.records, one.values, one.mean, one.std, statistics.fmean(differences), spread, len(differences)
    )


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def curve_names(records: Sequence[Record]) -> list[str]:
    """Metrics with a value at two steps or more of some run, the most telling first.

    Args:
        records: Runs.
    """
    counts: dict[str, int] = {}
    for record in records:
        for name in {name for row in record.rows for name in row}:
            counts[name] = max(counts.get(name, 0), sum(name in row for row in record.rows))
    names = [name for name, count in counts.items() if count > 1 and not name.startswith("progress/")]
    first = [name for name in CURVES if name in names]
    return [*first, *sorted(set(names) - {*first})]


def curve(records: Sequence[Record], metric: str) -> Curve:
    """Mean and range of a metric at every step that a run has logged; values that are not finite are left out.

    Args:
        records: Runs.
        metric: Name of the metric.
    """
    at: dict[float, list[float]] = {}
    for record in records:
        for row in record.rows:
            if math.isfinite(row.get(metric, math.nan)):
                at.setdefault(row[AXIS], []).append(row[metric])
    steps = sorted(at)
    values = [at[step] for step in steps]
    return Curve(steps, [*map(statistics.fmean, values)], [*map(min, values)], [*map(max, values)])
