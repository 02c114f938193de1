"""Curves of a run as PNG files, drawn from metrics.csv."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignlab.metrics import METRICS, Metric
from alignlab.run_folder.metrics_file import AXIS, read_metrics

CURVES: dict[str, tuple[str, ...]] = {
    "loss": ("train/loss", "val/loss"),
    "token_accuracy": ("train/token_accuracy", "val/token_accuracy"),
    "exact_match": ("val/exact_match",),
    "reward": ("reward/mean", "val/reward"),
    "gradient_norm": ("train/grad_norm", "train/grad_norm_clipped"),
    "learning_rate": ("train/lr",),
    "speed": ("train/tokens_per_second",),
}
"""Figures of every method: file name → metrics that share the figure. Metrics that were not logged are left out."""

COLOURS = ("#2f6fb5", "#e07b39", "#3a9a6d", "#b0476b", "#7a68b3", "#8a7a5c")
INK, FAINT = "#333333", "#d9d9d9"
SMOOTHING = 0.06
"""Width of the smoothing window as a share of the points."""

FROM_ZERO = {"train/lr", "train/grad_norm", "train/tokens_per_second"}
"""Metrics whose axis begins at zero; the axis of others fits their values."""

Points = list[tuple[float, float]]


def draw(metrics: Path, folder: Path, curves: Mapping[str, Sequence[str]] = CURVES) -> list[Path]:
    """Draw every figure with at least one logged metric.

    Args:
        metrics: The run's metrics.csv.
        folder: Folder of the PNG files, created if needed.
        curves: File name → metrics that share a figure.

    Returns:
        The files written.
    """
    rows = read_metrics(metrics)
    written = []
    for name, members in curves.items():
        series = {member: points for member in members if (points := _points(rows, member))}
        if series:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{name}.png")
            figure(series).savefig(written[-1], dpi=160, facecolor="white")
    return written


def figure(series: Mapping[str, Points]) -> Figure:
    """Draw one figure: dense curves raw and smoothed, sparse ones (validation) as points on a line.

    Args:
        series: Metric name → points ``(optimizer step, value)``, at least one.
    """
    made = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = made.add_subplot()
    names = list(series)
    dense = max(len(points) for points in series.values())
    for name, colour in zip(names, COLOURS * len(names), strict=False):
        (_draw_dense if len(series[name]) > dense / 2 and dense > 30 else _draw_sparse)(
            axes, name, series[name], colour
        )
    _style(axes, names)
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
    axes.plot(steps, smooth(values), color=colour, linewidth=1.9, label=name, solid_capstyle="round")


def _draw_sparse(axes: Axes, name: str, points: Points, colour: str) -> None:
    axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, marker="o", markersize=4, label=name)


def _style(axes: Axes, names: Sequence[str]) -> None:
    metric = METRICS.get(names[0], Metric("1", names[0]))
    axes.set_title(metric.meaning, loc="left", fontsize=11, color=INK, pad=10, wrap=True)
    axes.set_xlabel(METRICS[AXIS].unit, color=INK)
    if metric.unit != "1":
        axes.set_ylabel(metric.unit, color=INK)
    if metric.unit == "fraction":
        axes.set_ylim(-0.02, 1.02)
    if names[0] in FROM_ZERO:
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
