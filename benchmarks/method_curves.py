"""Curves of finished runs as small multiples, one picture per method, for docs/methods.

    python benchmarks/method_curves.py RUN_FOLDER… --into docs/methods/pictures

The method is read from each run's config.yaml; runs of one method, such as several seeds, share its picture.
"""

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from alignlab.errors import InputError
from alignlab.metrics import METRICS
from alignlab.run_folder.metrics_file import AXIS, read_metrics
from alignlab.run_folder.plots import COLOURS, FAINT, INK, Points, smooth

Panel = tuple[str, ...]
"""Metrics that share axes."""

LOSS, GRADIENT, EXACT = ("train/loss", "val/loss"), ("train/grad_norm",), ("val/exact_match",)
ACCURACY = ("rewards/accuracies", "val/rewards/accuracies")
MARGINS = ("rewards/margins", "val/rewards/margins")
REWARDS = ("rewards/chosen", "rewards/rejected")
HARDEST = ("group/active_fraction", "group/hardest_changed")
TOKENS = ("train/token_accuracy", "val/token_accuracy")
FLAT = ("zero_std_groups_right", "zero_std_groups_wrong")

IMITATION: tuple[Panel, ...] = (LOSS, TOKENS, EXACT, GRADIENT)
PAIRS: tuple[Panel, ...] = (LOSS, ACCURACY, MARGINS, ("logps/chosen", "logps/rejected"), EXACT, GRADIENT)
ONLINE: tuple[Panel, ...] = (("reward/mean",), EXACT, ("train/entropy",), ("completion_tokens/mean",), FLAT, GRADIENT)

PANELS: dict[str, tuple[Panel, ...]] = {
    "sft": IMITATION,
    "pretrain": IMITATION,
    "reward_model": (LOSS, ACCURACY, MARGINS, REWARDS, ("rewards/brier", "val/rewards/brier"), GRADIENT),
    **dict.fromkeys(("dpo", "simpo", "orpo", "cpo"), PAIRS),
    "group_dpo": (LOSS, ACCURACY, ("rewards/margins", "rewards/margins_hardest"), REWARDS, HARDEST, EXACT),
    "kto": (LOSS, REWARDS, ("kto/reference_point",), EXACT, GRADIENT),
    **dict.fromkeys(("grpo", "rloo"), ONLINE),
    "ppo": (*ONLINE[:3], ("train/approx_kl",), ("explained_variance",), GRADIENT),
}
"""Panels of a method, in reading order; metrics that no run has logged are left out."""

FROM_ZERO = {"train/grad_norm", "train/entropy", "completion_tokens/mean"}
"""Metrics whose axis begins at zero."""

WIDTH, ROW_HEIGHT, DOTS_PER_INCH, NUM_COLOURS = 10.2, 2.3, 110, 48

Runs = Sequence[list[dict[str, float]]]


def main(words: Sequence[str] | None = None) -> list[Path]:
    """Draw the runs of a command line; return the files written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where METHOD.png is written")
    asked = parser.parse_args(words)
    by_method: dict[str, list[Path]] = {}
    for run in asked.runs:
        by_method.setdefault(method_of(run), []).append(run)
    asked.into.mkdir(parents=True, exist_ok=True)
    return [draw(method, runs, asked.into / f"{method}.png") for method, runs in by_method.items()]


def method_of(run: Path) -> str:
    """The method of a run, as typed after ``method=``: the module of its class.

    Raises:
        InputError: It is not a run folder, or its method has no panels here.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise InputError(str(run), "it holds no config.yaml", "Name the folder of a run")
    method = yaml.safe_load(file.read_text(encoding="utf-8"))["method"]["_target_"].split(".")[-2]
    if method not in PANELS:
        raise InputError(str(run), f"nothing is said of method={method}", f"Add it to PANELS in {Path(__file__).name}")
    return method


def draw(method: str, folders: Sequence[Path], file: Path) -> Path:
    """Draw one picture of the runs of a method."""
    runs = [read_metrics(folder / "metrics.csv") for folder in folders]
    image = io.BytesIO()
    figure(PANELS[method], runs).savefig(image, dpi=DOTS_PER_INCH, facecolor="white")
    # The picture has few colours; with a palette the file has a third of the size.
    Image.open(image).convert("RGB").quantize(NUM_COLOURS, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)
    return file


def figure(panels: Sequence[Panel], runs: Runs) -> Figure:
    """Small multiples over optimizer steps.

    Args:
        panels: Panels to draw; metrics that no run has logged are left out.
        runs: Rows per run, as ``read_metrics`` returns them.

    Raises:
        InputError: None of the metrics was logged.
    """
    logged = [{name: found for name in panel if any(found := series(runs, name))} for panel in panels]
    logged = [panel for panel in logged if panel]
    if not logged:
        raise InputError("curves", "the runs have logged nothing of their method's", "Name runs that have trained")
    num_columns = 2 if len(logged) in (2, 4) else 3
    num_rows, last = -(-len(logged) // num_columns), max(row[AXIS] for rows in runs for row in rows)
    made = Figure(figsize=(WIDTH, ROW_HEIGHT * num_rows), layout="constrained")
    for index, panel in enumerate(logged):
        axes = made.add_subplot(num_rows, num_columns, index + 1)
        draw_panel(axes, panel)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        if index + num_columns >= len(logged):
            axes.set_xlabel(METRICS[AXIS].unit, color=INK, fontsize=9)
    return made


def series(runs: Runs, name: str) -> list[Points]:
    """Points ``(step, value)`` of a metric with finite values, per run."""
    points = [[(row[AXIS], row[name]) for row in rows if name in row] for rows in runs]
    return [[point for point in run if abs(point[1]) < float("inf")] for run in points]


def draw_panel(axes: Axes, panel: Mapping[str, Sequence[Points]]) -> None:
    """Draw the curves of a panel, with a legend instead of a title."""
    for (name, runs), colour in zip(panel.items(), COLOURS, strict=False):
        label = name
        for points in filter(None, runs):
            draw_curve(axes, points, colour, label, faint=len(runs) > 1, dots=name.startswith("val/"))
            label = "_"  # one entry per metric
    _dress(axes, list(panel))


def draw_curve(axes: Axes, points: Points, colour: str, label: str, *, faint: bool, dots: bool) -> None:
    """Draw a curve raw and smoothed; with ``dots``, for few values as of a validation, as points on a line."""
    steps, values = zip(*points, strict=True)
    width = 1.1 if faint else 1.6
    if dots:
        axes.plot(steps, values, color=colour, linewidth=width, marker="o", markersize=3, label=label)
        return
    axes.plot(steps, values, color=colour, alpha=0.15 if faint else 0.28, linewidth=0.7)
    axes.plot(steps, smooth(values), color=colour, linewidth=width, label=label, solid_capstyle="round")


def _dress(axes: Axes, names: Sequence[str]) -> None:
    lowest, highest = axes.get_ylim()
    if all(METRICS[name if name in METRICS else name.partition("/")[2]].unit == "fraction" for name in names):
        axes.set_ylim(min(lowest, -0.03), 1.03)
    elif names[0] in FROM_ZERO:
        axes.set_ylim(0, 1.05 * highest)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "borderaxespad": 0, "ncols": len(names)}
    axes.legend(**above, frameon=False, fontsize=8, labelcolor=INK, handlelength=1.2, columnspacing=1.2)


if __name__ == "__main__":
    try:
        print(*main(), sep="\n")
    except InputError as error:
        sys.exit(str(error))
