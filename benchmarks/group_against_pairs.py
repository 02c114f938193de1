"""Group DPO against DPO on exploded pairs: the table and curves in docs/methods/group_dpo.md, from yardstick runs.

    python benchmarks/yardsticks.py dpo group_dpo
    python -m benchmarks.group_against_pairs

Both see the same rows, one right and three wrong solutions each, in the same order for a seed: DPO as three pairs with
one chosen, group DPO as one group. Both make the same forward and backward passes, so equal steps are equal compute.
"""

import statistics
import sys
from pathlib import Path

from benchmarks.yardsticks import REPOSITORY, RUNS
from matplotlib.figure import Figure

from alignlab.training.metrics_file import read_metrics

PAGE = REPOSITORY / "docs" / "methods" / "group_dpo.md"
PICTURE = PAGE.parent / "pictures" / "group_against_pairs.png"
BEGIN, END = "<!-- comparison: written by benchmarks/group_against_pairs.py -->", "<!-- comparison: end -->"
METHODS = {"dpo": "tab:blue", "group_dpo": "tab:orange"}
COLUMNS = {
    "val/exact_match": "exact match",
    "val/logps/chosen": "log-probability of the chosen",
    "val/logps/rejected": "log-probability of the rejected",
}


def curves(method: str, metric: str) -> list[list[tuple[float, float]]]:
    """Points (step, value) of every seed."""
    found = []
    for folder in sorted(RUNS.glob(f"{method}-*")):
        rows = read_metrics(folder / "metrics.csv")
        found.append([(row["progress/step"], row[metric]) for row in rows if metric in row])
    return found


def table() -> str:
    """Means over the seeds at each validation, and the spread of the last."""
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " | exact match, each seed |", "|---|---|---|---|---|"]
    for method in METHODS:
        ends = {metric: [seed[-1][1] for seed in curves(method, metric)] for metric in COLUMNS}
        means = [f"{statistics.mean(values):.3f}" for values in ends.values()]
        each = " / ".join(f"{value:.3f}" for value in ends["val/exact_match"])
        lines.append(f"| `{method}` | {' | '.join(means)} | {each} |")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """One panel per column, one thin line per seed."""
    figure = Figure(figsize=(10.2, 2.8), dpi=110, layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(COLUMNS)), COLUMNS.items(), strict=True):
        for method, colour in METHODS.items():
            for number, points in enumerate(curves(method, metric)):
                axes.plot(*zip(*points, strict=True), color=colour, label=None if number else method)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> int:
    """Write both."""
    draw(PICTURE)
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
