"""Group DPO against DPO on the same rows: tables and curves in docs/methods/group_dpo.md, from finished runs.

    python benchmarks/yardsticks.py dpo group_dpo
    python train.py sweeps=group_against_pairs
    python -m benchmarks.group_against_pairs SWEEP_FOLDER/sweep.csv

Both train on the same rows, with one right and three wrong solutions each, in the same order for a seed: DPO on three
pairs with the same chosen completion, group DPO on one group. Both make the same forward and backward passes, so equal
steps need equal compute.
"""

import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from benchmarks.method_curves import rows_of
from benchmarks.yardsticks import REPOSITORY, RUNS
from matplotlib.figure import Figure

PAGE = REPOSITORY / "docs" / "methods" / "group_dpo.md"
PICTURE = PAGE.parent / "pictures" / "group_against_pairs.png"
BEGIN, END = "<!-- comparison: written by benchmarks/group_against_pairs.py -->", "<!-- comparison: end -->"
METHODS = {"dpo": "tab:blue", "group_dpo": "tab:orange"}
EXACT, MARGIN = "val/exact_match", "val/rewards/margins"
TITLES = {EXACT: "exact match", MARGIN: "chosen above the mean of the rejected, nats"}

Points = Sequence[tuple[float, float]]


def config_of(folder: Path) -> dict:
    """Read the config of a run."""
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))


def curve(folder: Path, metric: str) -> Points:
    """Points ``(step, value)`` of a run; margins are divided by beta, so that methods can be compared."""
    unit = config_of(folder)["method"]["beta"] if metric == MARGIN else 1.0
    return [(row["progress/step"], row[metric] / unit) for row in rows_of(folder) if metric in row]


def seeds_of(method: str) -> list[Path]:
    """Folders of the yardstick runs of a method, one per seed."""
    return sorted(RUNS.glob(f"{method}-[0-9]*"))


def table() -> str:
    """Table of the exact match of each seed at each validation, and of the mean last margin."""
    steps = [int(step) for step, _ in curve(seeds_of("dpo")[0], EXACT)]
    heads = [f"exact match, step {step}" for step in steps]
    lines = [f"| method | {' | '.join(heads)} | nats above the rejected |", "|---|" + "---|" * (len(heads) + 1)]
    for method in METHODS:
        seeds = [[value for _, value in curve(folder, EXACT)] for folder in seeds_of(method)]
        cells = [" / ".join(f"{value:.3f}" for value in at) for at in zip(*seeds, strict=True)]
        margin = statistics.mean(curve(folder, MARGIN)[-1][1] for folder in seeds_of(method))
        lines.append(f"| `{method}` | {' | '.join(cells)} | {margin:.2f} |")
    return "\n".join(lines)


def sweep_table(file: Path) -> str:
    """Table of the final exact match of each job of a sweep, by method, rate and beta."""
    ends: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    for job in csv.DictReader(file.open(encoding="utf-8", newline="")):
        typed = dict(word.split("=") for word in job["overrides"].split())
        ends[typed["method"]][f"{typed['optimizer.lr']}, {typed['method.beta']}"] = float(job[EXACT])
    columns = list(ends["dpo"])
    lines = [f"| `optimizer.lr`, `method.beta` | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for method, found in ends.items():
        lines.append(f"| `{method}` | {' | '.join(f'{found[column]:.3f}' for column in columns)} |")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """Draw one panel per metric, with one line per seed."""
    figure = Figure(figsize=(10.2, 3.0), dpi=110, layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        for method, colour in METHODS.items():
            for number, folder in enumerate(seeds_of(method)):
                label = None if number else method
                axes.plot(
                    *zip(*curve(folder, metric), strict=True), color=colour, label=label, marker="o", markersize=3
                )
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, linewidth=0.6)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main(sweep: str) -> int:
    """Write the tables and the picture."""
    draw(PICTURE)
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{table()}\n\n{sweep_table(Path(sweep))}\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
