"""The same report as Markdown with PNG files, for a repository or an issue."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from alignlab.report.page import COLOURS, OPEN_CURVES, meaning, number
from alignlab.report.results import Ranked, Results, curve, curve_names
from alignlab.report.settings import cell


def markdown(results: Results, pictures: Iterable[Path]) -> str:
    """Make the text.

    Args:
        results: What it shows.
        pictures: Files of ``draw_curves``, in the folder of the text.
    """
    records, columns, metric = results.records, results.columns, results.metric
    values = {id(record): [cell(column[index]) for column in columns.values()] for index, record in enumerate(records)}
    head = ["run", "status", *columns, metric, "before", "steps", "seconds"]
    rows = [
        [
            record.name,
            record.status,
            *values[id(record)],
            number(record.metrics.get(metric)),
            number(record.before.get(metric)),
            number(record.summary.get("steps")),
            number(record.summary.get("wall_seconds")),
        ]
        for record in results.order
    ]
    parts = [f"# {results.num_done} of {len(records)} runs done", ""]
    parts += [f"Ranked by `{metric}`: {meaning(metric)}.", "", *_table(head, rows), ""]
    if len(ranked := results.measured) > 1:
        head = ["settings", "runs", metric, "deviation", "difference to the best", "its error", "seeds"]
        numbers = ((one.mean, one.std, one.difference, one.error, one.num_pairs or None) for one in ranked)
        rows = [[one.label, str(len(one.records)), *map(number, row)] for one, row in zip(ranked, numbers, strict=True)]
        parts += ["## Settings, over their seeds", "", *_table(head, rows), ""]
    for picture in pictures:
        parts += [f"![{picture.stem}]({picture.name})", ""]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines]


def draw_curves(ranking: Sequence[Ranked], folder: Path) -> list[Path]:
    """Draw the first curves, each with the range over seeds as a band.

    Args:
        ranking: Settings with their runs.
        folder: Folder of the PNG files.

    Returns:
        The files written.
    """
    names = curve_names([record for one in ranking for record in one.records])[:OPEN_CURVES]
    files = [folder / f"{name.replace('/', '_')}.png" for name in names]
    for name, file in zip(names, files, strict=True):
        _figure(name, ranking).savefig(file, dpi=140, facecolor="white")
    return files


def _figure(metric: str, ranking: Sequence[Ranked]) -> Figure:
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, one in enumerate(ranking):
        drawn, colour = curve(one.records, metric), COLOURS[index % len(COLOURS)]
        axes.fill_between(drawn.steps, drawn.low, drawn.high, color=colour, alpha=0.2, linewidth=0)
        mark = "o" if len(drawn.steps) <= 12 else ""
        axes.plot(drawn.steps, drawn.mean, color=colour, marker=mark, markersize=4, label=one.label)
    axes.set_title(f"{metric}: {meaning(metric)}", loc="left", fontsize=10, wrap=True)
    axes.set_xlabel("optimizer steps")
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
