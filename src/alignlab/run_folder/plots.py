"""Curves of a run as PNG files, drawn from metrics.csv."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignlab.metrics import METRICS, Metric, find
from alignlab.run_folder.metrics_file import AXIS, read_metrics

EACH_REWARD = "reward/*"

CURVES: dict[str, tuple[str, ...]] = {
    "loss": ("train/loss", "val/loss"),
    "token_accuracy": ("train/token_accuracy", "val/token_accuracy"),
    "exact_match": ("val/exact_match",),
    "gradient_norm": ("train/grad_norm", "train/grad_norm_clipped"),
    "learning_rate": ("train/lr",),
    "speed": ("train/tokens_per_second",),
    "rewards": ("rewards/chosen", "rewards/rejected", "val/rewards/chosen", "val/rewards/rejected"),
    "margins": ("rewards/margins", "val/rewards/margins", "rewards/margins_hardest", "val/rewards/margins_hardest"),
    "accuracies": ("rewards/accuracies", "val/rewards/accuracies"),
    "logps": ("logps/chosen", "logps/rejected", "val/logps/chosen", "val/logps/rejected"),
    "active_groups": ("group/active_fraction", "val/group/active_fraction"),
    "kto_reference_point": ("kto/reference_point", "val/kto/reference_point"),
    "reward": ("reward/mean", "val/reward", EACH_REWARD),
    "reward_std": ("reward/std",),
    "kl": ("train/kl", "train/approx_kl"),
    "kl_per_completion": ("kl_per_completion",),
    "entropy": ("train/entropy",),
    "completion_tokens": ("completion_tokens/mean", "completion_tokens/max"),
    "truncated": ("truncated_fraction",),
    "equal_groups": ("zero_std_groups", "zero_std_groups_right", "zero_std_groups_wrong"),
    "clip_fraction": ("train/clip_fraction", "train/clip_fraction_low", "train/clip_fraction_high"),
    "value_loss": ("train/value_loss",),
    "explained_variance": ("train/explained_variance",),
}
"""Figures of all methods: file name → metrics that share the figure. Those that were not logged are left out.
``reward/*`` stands for every reward by its own name."""

COLOURS = ("#2f6fb5", "#e07b39", "#3a9a6d", "#b0476b", "#7a68b3", "#8a7a5c")
INK, GREY, FAINT = "#333333", "#777777", "#d9d9d9"
MARGINS = {"left": 0.11, "right": 0.98, "bottom": 0.12, "top": 0.85}
"""Edges of the axes as shares of the figure. Fixed, since a layout engine takes as long as the drawing itself."""

SMOOTHING = 0.06
"""Width of the smoothing window as a share of the points."""

EXACT = {"train/lr"}
"""Metrics without noise, which are not smoothed."""

FROM_ZERO = {"train/lr", "train/grad_norm", "train/tokens_per_second", "train/clip_fraction", "truncated_fraction"}
"""Metrics whose axis begins at zero; the axis of others fits their values."""

SMALL_FRACTION = 0.2
"""Fractions that stay below it have an axis of their own size; that of others goes from 0 to 1."""

Points = list[tuple[float, float]]


def draw(metrics: Path, folder: Path, *, title: str, own_metrics: Mapping[str, Metric]) -> list[Path]:
    """Draw every figure of ``CURVES`` with at least one logged metric, and one for each metric of the method's own.

    Args:
        metrics: The run's metrics.csv.
        folder: Folder of the PNG files, created if needed.
        title: First line of every figure: run, method and model.
        own_metrics: Metrics that the method declares beside those of ``metrics.py``, by name.

    Returns:
        The files written.
    """
    rows = read_metrics(metrics)
    logged = list(dict.fromkeys(name for row in rows for name in row))
    own = {name.replace("/", "_"): tuple(_stages(name)) for name in own_metrics}
    written = []
    for file, members in {**CURVES, **own}.items():
        names = [name for member in members for name in (_each_reward(logged) if member == EACH_REWARD else [member])]
        series = {name: points for name in names if (points := _points(rows, name))}
        if series:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{file}.png")
            made = figure(series, title=title, known=METRICS | own_metrics)
            made.savefig(written[-1], dpi=160, facecolor="white")
    return written


def file_names(logged: Iterable[str]) -> set[str]:
    """Names of all files that ``draw`` may write for logged metrics."""
    own = {name.removeprefix("train/").removeprefix("val/").replace("/", "_") for name in logged}
    return {f"{name}.png" for name in {*CURVES, *own}}


def figure(series: Mapping[str, Points], *, title: str, known: Mapping[str, Metric]) -> Figure:
    """Draw one figure: dense curves raw and smoothed, sparse ones (validation) as points on a line.

    Args:
        series: Metric name → points ``(optimizer step, value)``, at least one.
        title: First line of the title; the meaning of the first metric is the second.
        known: Metrics by name.
    """
    made = Figure(figsize=(7.2, 4.2))
    axes = made.add_subplot()
    made.subplots_adjust(**MARGINS)
    made.text(MARGINS["left"], 0.95, title, fontsize=9, color=GREY)
    dense = max(len(points) for points in series.values())
    for (name, points), colour in zip(series.items(), COLOURS * len(series), strict=False):
        (_draw_dense if len(points) > dense / 2 and dense > 30 else _draw_sparse)(axes, name, points, colour)
    _style(axes, series, find(next(iter(series)), known) or Metric("1", next(iter(series))))
    return made


def smooth(values: Sequence[float], share: float = SMOOTHING) -> list[float]:
    """Mean over a window around each value, which near the beginning is narrower and centred.

    Args:
        values: Finite values in order.
        share: Width of the window as a share of the number of values.
    """
    sums, reach = [0.0, *accumulate(values)], round(len(values) * share / 2)
    smoothed = []
    for index in range(len(values)):
        before = min(reach, index)
        after = min(before, len(values) - 1 - index)
        smoothed.append((sums[index + after + 1] - sums[index - before]) / (before + 1 + after))
    return smoothed


def _draw_dense(axes: Axes, name: str, points: Points, colour: str) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.8)
    axes.plot(
        steps,
        values if name in EXACT else smooth(values),
        color=colour,
        linewidth=1.9,
        label=name,
        solid_capstyle="round",
    )


def _draw_sparse(axes: Axes, name: str, points: Points, colour: str) -> None:
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, marker="o", markersize=4, label=name)


def _style(axes: Axes, series: Mapping[str, Points], metric: Metric) -> None:
    values = [value for points in series.values() for _, value in points]
    axes.set_title(metric.meaning, loc="left", fontsize=11, color=INK, pad=8, wrap=True)
    axes.set_xlabel(METRICS[AXIS].unit, color=INK)
    if metric.unit != "1":
        axes.set_ylabel(metric.unit, color=INK)
    if metric.unit == "fraction" and min(values) >= 0 and SMALL_FRACTION < max(values) <= 1:
        axes.set_ylim(-0.02, 1.02)
    elif FROM_ZERO & series.keys():
        axes.set_ylim(bottom=0)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.015)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _points(rows: list[dict[str, float]], name: str) -> Points:
    """Finite values of a metric by step."""
    found = [(row[AXIS], row[name]) for row in rows if name in row]
    return [point for point in found if abs(point[1]) < float("inf")]


def _each_reward(logged: Iterable[str]) -> list[str]:
    """Logged rewards by name, without their deviations."""
    mine = (name for name in logged if name.startswith("reward/") and name not in METRICS)
    return [name for name in mine if not name.endswith("_std")]


def _stages(name: str) -> list[str]:
    """Names under which a metric of a method may be logged: in training, and in validation."""
    return [name if "/" in name else f"train/{name}", f"val/{name}"]
