"""Measure a model on rows of data."""

from collections.abc import Callable, Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

from alignlab.assemble import Config
from alignlab.config.build import build
from alignlab.config.sources import source_node
from alignlab.data.sources.mixture import set_row_kind
from alignlab.errors import InputError
from alignlab.evaluation.opened import Opened, open_for
from alignlab.evaluation.results import Evaluation, refuse_files_of_others
from alignlab.evaluation.rows import Set, read_sets
from alignlab.evaluation.samples import measure_samples, why_no_samples
from alignlab.evaluation.scores import measure_loss, measure_pairs, why_no_loss, why_no_pairs
from alignlab.evaluation.wins import measure_wins, why_no_wins
from alignlab.measures.estimates import Estimate, estimate
from alignlab.measures.sampled import refuse_large_k
from alignlab.measures.settings import TaskSettings
from alignlab.measures.tasks import refuse_unknown, run_tasks
from alignlab.types.loss import Ratio
from alignlab.types.rows import Demonstration, Preference, Row

Measure = Callable[[Config, Opened, Opened | None, Sequence[Row]], tuple[dict[str, Ratio], list[dict[str, Any]]]]
"""``(config, model, other model, rows)`` → metrics by row, and completions."""


MEASURES: dict[str, tuple[Callable[[Config, Opened, Row], str | None], Measure]] = {
    "loss": (why_no_loss, measure_loss),
    "samples": (why_no_samples, measure_samples),
    "pairs": (why_no_pairs, measure_pairs),
    "wins": (why_no_wins, measure_wins),
}
"""By name: why a measure does not fit a model and rows, or None; and the measure."""


def evaluate(config: Config) -> Evaluation:
    """Measure a model.

    Args:
        config: Checked config of ``alignlab evaluate``.

    Raises:
        InputError: Model or data are missing, or nothing can be measured with both.
    """
    refuse_files_of_others(Path(config["to"]))
    refuse_large_k(config["samples"]["k"], config["samples"]["num_completions"], "samples")
    tasks = TaskSettings(**config["tasks"])
    if tasks.names:
        refuse_unknown(tasks)
    opened = open_for(config, config["from"])
    results: dict[Set, dict[str, Estimate]] = {}
    if tasks.names and not opened.model.can_generate():
        asked = f"tasks.names=[{','.join(tasks.names)}]"
        raise InputError(asked, f"{config['from']} is a reward model, which gives no text", "Name another model")
    if tasks.names:
        results[None] = run_tasks(opened.model, opened.tokenizer, tasks, config["num_rows"])
    if not config["data"]:
        return Evaluation(results, [])
    other = None if config["against"] is None else open_for(config, config["against"])
    source = build("data.source", source_node(config["data"]))
    set_row_kind(source, Demonstration if opened.model.can_generate() else Preference)
    completions: list[Mapping[str, Any]] = []
    for name, rows in read_sets(config, source).items():
        metrics: dict[str, Estimate] = {}
        for measure in choose_measures(config, opened, rows):
            found, samples = measure(config, opened, other, rows)
            metrics |= {key: value for key, ratio in found.items() if (value := estimate(ratio)) is not None}
            completions += [sample if name is None else {"set": name, **sample} for sample in samples]
        if "loss" in metrics:
            metrics = {"loss": metrics["loss"], "perplexity": metrics["loss"].through(exp)} | metrics
        results[name] = results.get(name, {}) | metrics
    return Evaluation(results, completions)


def choose_measures(config: Config, opened: Opened, rows: Sequence[Row]) -> list[Measure]:
    """The measures that were asked for, or all that fit the model and the rows.

    Raises:
        InputError: One that was asked for does not fit, or none does.
    """
    reasons = {name: why_not(config, opened, rows[0]) for name, (why_not, _) in MEASURES.items()}
    asked = config["measures"] or [name for name, reason in reasons.items() if reason is None]
    for name in asked:
        if reasons[name] is not None:
            fitting = [other for other, reason in reasons.items() if reason is None]
            instead = f"Type measures=[{','.join(fitting)}]" if fitting else "Name other rows, or another model"
            raise InputError(f"measures=[{','.join(asked)}]", f"{name}: {reasons[name]}", instead)
    if not asked:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise InputError(f"evaluating {config['from']}", why, "Name other rows, or another model")
    return [MEASURES[name][1] for name in asked]
