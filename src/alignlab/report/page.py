"""One self-contained HTML page about several runs. It loads nothing, so it opens anywhere and from a mail."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alignlab.metrics import METRICS, Metric
from alignlab.report.records import Record
from alignlab.report.results import Curve, Ranked, Results, curve, curve_names
from alignlab.report.settings import cell

GENERATOR = '<meta name="generator" content="alignlab report">'

COLOURS = ("#2f6fb5", "#e07b39", "#3a9a6d", "#b0476b", "#7a68b3", "#8a7a5c", "#4ba3b3", "#c9a227")

OPEN_CURVES = 6
"""Number of curves that are drawn at once; the others open on a click."""

MAX_SAMPLES = 2000
"""Completions on the page, of all runs, the newest of each."""


def page(results: Results) -> str:
    """Make the page.

    Args:
        results: What it shows.
    """
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = number
    text = (files("alignlab.report") / "page.html").read_text(encoding="utf-8")
    records, columns, order, ranking = results.records, results.columns, results.order, results.measured
    return environment.from_string(text).render(
        generator=Markup(GENERATOR),
        plotly=Markup(get_plotlyjs()),
        made=time.strftime("%Y-%m-%d %H:%M"),
        metric=results.metric,
        meaning=meaning(results.metric),
        order=order,
        columns=columns,
        cells={key: dict(zip(map(id, records), map(cell, values), strict=True)) for key, values in columns.items()},
        identity=id,
        ranking=ranking,
        best=ranking[0] if ranking else None,
        best_run=next((one for one in order if one.status == "done" and results.metric in one.metrics), None),
        unfinished=[record for record in records if record.status != "done"],
        num_done=results.num_done,
        data=_as_script(
            {
                "curves": curves(results.ranking),
                "open": OPEN_CURVES,
                "parallel": parallel(records, columns, results.metric),
                "samples": samples(records),
            }
        ),
    )


def number(value: float | None) -> str:
    """Whole numbers in full, others with four digits; a dash for what is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def meaning(metric: str) -> str:
    """What a metric means, and its unit; empty for a metric of one's own."""
    entry = METRICS.get(metric) or METRICS.get(metric.split("/", 1)[-1], Metric("1", ""))
    return entry.meaning if entry.unit in ("1", "fraction") else f"{entry.meaning}, in {entry.unit}"


def curves(ranking: Sequence[Ranked]) -> list[dict[str, Any]]:
    """One figure per metric, as Plotly takes it: the mean of each setting as a line, the range over seeds as a band."""
    names = curve_names([record for one in ranking for record in one.records])
    return [{"metric": name, "meaning": meaning(name), "traces": _traces(name, ranking)} for name in names]


def _traces(metric: str, ranking: Sequence[Ranked]) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for index, one in enumerate(ranking):
        drawn, colour = curve(one.records, metric), COLOURS[index % len(COLOURS)]
        if not drawn.steps:
            continue
        shared = {"legendgroup": one.label, "name": one.label, "x": drawn.steps}
        if len(one.records) > 1:
            traces += _band(drawn, colour, shared)
        mode = "lines" if len(drawn.steps) > 12 else "lines+markers"
        traces.append({**shared, "type": "scatter", "y": drawn.mean, "mode": mode, "line": {"color": colour}})
    return traces


def _band(drawn: Curve, colour: str, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    edge = {**shared, "type": "scatter", "mode": "lines", "line": {"width": 0}, "showlegend": False}
    edge |= {"hoverinfo": "skip"}
    return [{**edge, "y": drawn.low}, {**edge, "y": drawn.high, "fill": "tonexty", "fillcolor": colour + "33"}]


def parallel(records: Sequence[Record], columns: Mapping[str, Sequence[Any]], metric: str) -> dict[str, Any] | None:
    """Parallel coordinates of all runs with the metric, as Plotly takes them; None for fewer than two."""
    shown = [index for index, record in enumerate(records) if record.metrics.get(metric) is not None]
    if len(shown) < 2:
        return None
    dimensions = [_dimension(key, [values[index] for index in shown]) for key, values in columns.items()]
    results = [records[index].metrics[metric] for index in shown]
    dimensions.append({"label": metric, "values": results})
    line = {"color": results, "colorscale": "Viridis", "showscale": True}
    return {"type": "parcoords", "dimensions": [one for one in dimensions if one], "line": line}


def _dimension(key: str, values: Sequence[Any]) -> dict[str, Any] | None:
    """One axis: numbers by value, of rates by logarithm, and everything else by name; None if all are equal."""
    if len(set(map(cell, values))) < 2:
        return None
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values) or key == "seed":
        names = sorted(set(map(cell, values)))
        return {"label": key, "values": [names.index(cell(value)) for value in values]} | _ticks(
            range(len(names)), names
        )
    if min(numbers) > 0 and max(numbers) / min(numbers) > 20:
        marks = sorted(set(numbers))
        places = [math.log10(value) for value in numbers]
        return {"label": key, "values": places} | _ticks(map(math.log10, marks), map(number, marks))
    return {"label": key, "values": numbers}


def _ticks(places: Any, texts: Any) -> dict[str, Any]:
    return {"tickvals": list(places), "ticktext": list(texts)}


def samples(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The newest completions of each run, at most ``MAX_SAMPLES`` of all."""
    sampling = [record for record in records if record.samples]
    each = MAX_SAMPLES // max(1, len(sampling))
    return [{"run": record.name, **sample} for record in sampling for sample in record.samples[-each:]]


def _as_script(data: Any) -> Markup:
    """JSON that can stand in a script element, whatever the texts in it hold."""
    return Markup(json.dumps(_without_nan(data), ensure_ascii=False).replace("<", "\\u003c"))


def _without_nan(data: Any) -> Any:
    """JSON has no NaN; null leaves a gap in a curve."""
    if isinstance(data, Mapping):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
