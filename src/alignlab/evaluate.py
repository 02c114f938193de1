"""An evaluation: measure a trained model on rows of data, and write the results."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from alignlab.assemble import Config, pick
from alignlab.config.build import build, build_all
from alignlab.config.sources import source_node
from alignlab.data.batching.plan import PlanSettings
from alignlab.data.formats.conversions import convert, converts, prepend
from alignlab.data.sources.mixture import set_row_kind
from alignlab.data.sources.split import Source, split_rows
from alignlab.data.table.cache import tokenize_stream
from alignlab.data.tokenise.context import TokenSettings
from alignlab.data.tokenise.rows import tokenize
from alignlab.data.tokenise.templates import set_template
from alignlab.data.tokenise.turn_ends import stop_tokens
from alignlab.errors import InputError
from alignlab.measures.batches import micro_batches
from alignlab.measures.estimates import Estimate, estimate, of_rows, share_of
from alignlab.measures.likelihood import likelihood
from alignlab.measures.pairs import preferences
from alignlab.measures.sampled import refuse_large_k, right_answers, sample_metrics
from alignlab.measures.tasks import TaskSettings, refuse_unknown, run_tasks
from alignlab.models.heads import Head, adapter_head
from alignlab.models.locations import locate
from alignlab.models.opened import open_trained
from alignlab.models.scoring import verify
from alignlab.models.stopping import declared_stops
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.collect import prompt_generator, reward
from alignlab.run import read_config
from alignlab.run_folder.folder import RunFolder
from alignlab.run_folder.location import names_in
from alignlab.run_folder.loggers import close_loggers
from alignlab.system.disk import write_text
from alignlab.types.loss import Ratio
from alignlab.types.rows import Demonstration, Preference, Prompt, Row, Text, TokenRow

RESULTS = "evaluation.json"
COMPLETIONS = "completions.jsonl"

HELD_OUT = "held_out"
"""Value of ``rows``: those that the run did not train on. ``all``: the validation part of the data, or all of it."""

Set = str | None
"""Name of a set of rows; None if there is one set without a name."""


@dataclass(frozen=True)
class Opened:
    """A model to measure.

    Args:
        model: In eval mode.
        tokenizer: With its chat template.
        stops: Tokens that end a completion.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[int]


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Args:
        results: Estimates by metric, for each set of rows.
        completions: Sampled completions with what they are worth, in the order of the prompts.
    """

    results: Mapping[Set, Mapping[str, Estimate]]
    completions: Sequence[Mapping[str, Any]]


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


def open_for(config: Config, path: str) -> Opened:
    """Open a model, with the chat template of the data."""
    options = {key: config[key] for key in ("dtype", "device", "trust_remote_code")}
    model, tokenizer = open_trained(path, head=head_at(path), **options)
    data = config["data"] or {"chat_template": "auto", "chat_template_kwargs": {}}
    template = set_template(tokenizer, data["chat_template"], data["chat_template_kwargs"])
    if not model.can_generate():
        return Opened(model, tokenizer, ())
    return Opened(model, tokenizer, sorted(stop_tokens(tokenizer, template) | declared_stops(model)))


def head_at(path: str) -> Head:
    """Which head the weights at a path have."""
    location = locate(path)
    if location.adapter:
        return adapter_head(location.adapter)
    architectures = AutoConfig.from_pretrained(location.weights, revision=location.revision).architectures or ()
    return "reward" if any("SequenceClassification" in name for name in architectures) else "language_model"


# --- rows -------------------------------------------------------------------------------------------------------------


def read_sets(config: Config, source: Source) -> dict[Set, list[Row]]:
    """The rows to measure on, at most ``num_rows`` of each set.

    Raises:
        InputError: There are none.
    """
    names = getattr(source, "validation_sets", ())
    parts = {name: f"validation/{name}" for name in names} or {None: "validation"}
    sets = {name: list(islice(_rows(config, source, part), config["num_rows"])) for name, part in parts.items()}
    if not all(sets.values()):
        asked, why = f"data.path={config['data'].get('path')}", "it has no row to measure on"
        raise InputError(asked, why, "Name other rows: data=jsonl data.path=FILE")
    return sets


def _rows(config: Config, source: Source, part: str) -> Iterator[Row]:
    data = config["data"]
    held_out = data["validation_size"] if config["rows"] == HELD_OUT else None
    if held_out is None and part == "validation" and next(source.rows("validation"), None) is None:
        part = "train"
    for row in split_rows(source, part, held_out):
        yield prepend(row, data["prepend"]) if data["prepend"] else row


def encode(config: Config, opened: Opened, rows: Sequence[Row], kind: type[Row]) -> list[TokenRow]:
    """Rows of a kind as tokens."""
    settings = token_settings(config)
    return list(tokenize_stream((convert(row, kind) for row in rows), opened.tokenizer, settings, kind))


def token_settings(config: Config) -> TokenSettings:
    """How rows become tokens; weights of rows and turns are for training alone."""
    return pick(TokenSettings, config["data"] | {"number_columns": (), "weight_column": None, "weighs_turns": False})


def encode_prompts(config: Config, opened: Opened, rows: Sequence[Row]) -> list[TokenRow]:
    """Rows as prompts, without those that are too long."""
    prompts = [tokenize(convert(row, Prompt), opened.tokenizer, token_settings(config)) for row in rows]
    return [row for row in prompts if isinstance(row, TokenRow)]


# --- measures ---------------------------------------------------------------------------------------------------------

Measure = Callable[[Config, Opened, Opened | None, Sequence[Row]], tuple[dict[str, Ratio], list[dict[str, Any]]]]
"""``(config, model, other model, rows)`` → metrics by row, and completions."""


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


def _why_no_loss(config: Config, opened: Opened, row: Row) -> str | None:
    if not opened.model.can_generate():
        return "a reward model gives no probabilities"
    return None if converts(row, _kind(row)) else f"{row.origin} has no answer, and is no text"


def _why_no_samples(config: Config, opened: Opened, row: Row) -> str | None:
    if not opened.model.can_generate():
        return "a reward model gives no completions"
    if not converts(row, Prompt):
        return f"{row.origin} has no prompt"
    if config["method"]["reward"] or "answer" in row.columns:
        return None
    return "the rows have no column 'answer', and there is no method/reward="


def _why_no_pairs(config: Config, opened: Opened, row: Row) -> str | None:
    if opened.model.can_generate():
        return "a language model scores no sequences"
    return None if converts(row, Preference) else f"{row.origin} compares no completions"


def _why_no_wins(config: Config, opened: Opened, row: Row) -> str | None:
    if not config["against"]:
        return "there is no against=MODEL"
    if not config["method"]["reward"]:
        return "there is no method/reward= that judges the completions"
    return _why_no_samples(config, opened, row)


def _kind(row: Row) -> type[Row]:
    return Text if isinstance(row, Text) else Demonstration


def measure_loss(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """Loss, accuracy and bits per byte of the answers, or of the texts."""
    encoded = encode(config, opened, rows, _kind(rows[0]))
    return likelihood(opened.model, _batches(config, opened, encoded), opened.tokenizer), []


def measure_pairs(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """How often the reward model prefers the chosen completion."""
    return preferences(opened.model, _batches(config, opened, encode(config, opened, rows, Preference))), []


def _batches(config: Config, opened: Opened, rows: Sequence[TokenRow]) -> Iterator[Any]:
    packing = config["data"]["packing"]
    verify(opened.model, packing)
    plan = pick(PlanSettings, config["data"] | {"seed": config["seed"]})
    pad = opened.tokenizer.pad_token_id or 0
    return micro_batches(rows, plan, packing=packing, pad_token_id=pad, device=opened.model.device)


def measure_samples(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """Right greedy answers; rewards and pass rates of sampled completions; and wins over another model."""
    prompts = encode_prompts(config, opened, rows)
    sampler = build("rollout", config["rollout"])
    score = _scorer(config, opened)
    settings, metrics, completions = config["samples"], {}, []
    answers = any("answer" in row.record["columns"] for row in prompts)
    draw = partial(_draw, config, sampler)
    if answers:
        texts, _ = draw(opened, prompts, 1, greedy=True)
        right = right_answers(prompts, texts, 1)
        metrics["exact_match"] = share_of(right[:, 0])
        completions += _records(prompts, texts, {"right": right}, "greedy")
    if score or settings["k"]:
        n = settings["num_completions"]
        texts, drawn = draw(opened, prompts, n)
        columns = score(prompts, [n] * len(prompts), drawn)[0] if score else {}
        columns = {key: values.view(len(prompts), n) for key, values in columns.items()}
        if settings["k"]:
            columns["passed"] = _passed(settings["pass_reward"], columns, prompts, texts, n)
        metrics |= sample_metrics(columns, settings["k"])
        completions += _records(prompts, texts, columns, "sampled")
    return metrics, completions


def measure_wins(
    config: Config, opened: Opened, other: Opened | None, rows: Sequence[Row]
) -> tuple[dict[str, Ratio], list[dict[str, Any]]]:
    """Prompts whose completion gets a higher reward than that of the other model; equal rewards are half a win."""
    sampler, sides = build("rollout", config["rollout"]), {}
    completions: list[dict[str, Any]] = []
    for name, side in (("from", opened), ("against", other)):
        prompts = encode_prompts(config, side, rows)
        texts, drawn = _draw(config, sampler, side, prompts, 1)
        columns = _scorer(config, side)(prompts, [1] * len(prompts), drawn)[0]
        sides[name] = {row.origin: float(value) for row, value in zip(prompts, columns["reward"], strict=True)}
        completions += _records(prompts, texts, columns, name)
    both = [origin for origin in sides["from"] if origin in sides["against"]]
    differences = torch.tensor([sides["from"][one] - sides["against"][one] for one in both], dtype=torch.float64)
    wins = (differences.sign() + 1) / 2
    return {"win_rate": share_of(wins), "reward_difference": of_rows(differences)}, completions


def _scorer(config: Config, opened: Opened) -> Callable[..., tuple[dict[str, torch.Tensor], Any]] | None:
    """``collect.reward`` with the rewards of the config; None without rewards."""
    node = config["method"]
    if not node["reward"]:
        return None
    limits = build("method.reward_limits", node["reward_limits"])
    scorer = Scorer(build_all("method.reward", node["reward"]), node["reward_weights"], limits)
    scorer.to(opened.model.device)
    special = {"with_special_tokens": node["reward_special_tokens"], "truncation_penalty": None}
    return partial(reward, scorer, opened.tokenizer, **special)


def _draw(
    config: Config, sampler: Any, opened: Opened, prompts: Sequence[TokenRow], num_completions: int, greedy=False
) -> tuple[list[str], Any]:
    """Completions of the prompts, as texts and as they were drawn; the same for any batch size."""
    drawn = sampler(
        opened.model,
        prompts,
        num_completions=num_completions,
        stop_tokens=opened.stops,
        tokenizer=opened.tokenizer,
        generator=[prompt_generator(config["seed"], "held out", index) for index in range(len(prompts))],
        greedy=greedy,
    )
    return opened.tokenizer.batch_decode(drawn.token_lists(), skip_special_tokens=True), drawn


def _passed(
    pass_reward: float | None,
    columns: Mapping[str, torch.Tensor],
    prompts: Sequence[TokenRow],
    texts: list[str],
    n: int,
) -> torch.Tensor:
    """1 for completions that pass, 0 for others, NaN where nobody knows. Shape ``[P, n]``."""
    if pass_reward is None:
        return right_answers(prompts, texts, n)
    total = columns["reward"]
    return (total >= pass_reward).double().masked_fill(total.isnan(), torch.nan)


def _records(
    prompts: Sequence[TokenRow], texts: Sequence[str], columns: Mapping[str, torch.Tensor], how: str
) -> list[dict[str, Any]]:
    """What is written of each completion."""
    rows = [row for row in prompts for _ in range(len(texts) // len(prompts))]
    flat = {key: values.flatten().tolist() for key, values in columns.items()}
    values = [{key: column[index] for key, column in flat.items()} for index in range(len(texts))]
    return [
        {"origin": row.origin, "prompt": row.record["prompt"], "completion": text, "drawn": how, **own}
        for row, text, own in zip(rows, texts, values, strict=True)
    ]


MEASURES: dict[str, tuple[Callable[[Config, Opened, Row], str | None], Measure]] = {
    "loss": (_why_no_loss, measure_loss),
    "samples": (_why_no_samples, measure_samples),
    "pairs": (_why_no_pairs, measure_pairs),
    "wins": (_why_no_wins, measure_wins),
}
"""By name: why a measure does not fit a model and rows, or None; and the measure."""


# --- results ----------------------------------------------------------------------------------------------------------


def refuse_files_of_others(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier evaluation, before anything is measured.

    Raises:
        InputError: It does.
    """
    asked, instead = f"to={folder}", "Name a folder that is new, empty, or holds an earlier evaluation"
    if folder.exists() and not folder.is_dir():
        raise InputError(asked, "it is a file", instead)
    foreign = names_in(folder) - {RESULTS, COMPLETIONS}
    if not foreign and names_in(folder) and not is_evaluation(folder / RESULTS):
        foreign = names_in(folder)
    if foreign:
        why = f"it holds files that are not of an evaluation: {', '.join(sorted(foreign)[:3])}"
        raise InputError(asked, why, instead)


def is_evaluation(path: Path) -> bool:
    """Whether a file holds the results of an evaluation."""
    try:
        return {"results", "config"} <= json.loads(path.read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        return False


def write_results(evaluation: Evaluation, config: Config, folder: Path) -> None:
    """Write ``evaluation.json`` and ``completions.jsonl``.

    Args:
        evaluation: What came out.
        config: What was asked.
        folder: Made if it is missing; one that ``refuse_files_of_others`` accepts.
    """
    results = {name: asdict(found) for name, found in by_name(evaluation).items()}
    write_text(folder / RESULTS, json.dumps({"results": results, "config": config}, indent=1, ensure_ascii=False))
    (folder / COMPLETIONS).unlink(missing_ok=True)  # of an earlier evaluation
    if evaluation.completions:
        lines = (json.dumps(one, ensure_ascii=False) for one in evaluation.completions)
        write_text(folder / COMPLETIONS, "".join(f"{line}\n" for line in lines))


def by_name(evaluation: Evaluation) -> dict[str, Estimate]:
    """The estimates as ``METRIC``, and those of a named set as ``SET/METRIC``."""
    results = evaluation.results.items()
    return {
        metric if name is None else f"{name}/{metric}": found
        for name, metrics in results
        for metric, found in metrics.items()
    }


def log_to_tracker(evaluation: Evaluation, run: Path) -> bool:
    """Add the results to the W&B run of a run, as ``evaluation/METRIC`` of its summary.

    Args:
        evaluation: What came out.
        run: Folder of the run.

    Returns:
        Whether the run has one.
    """
    folder, node = RunFolder(run), (read_config(run / "config.yaml")["logger"] or {}).get("wandb")
    if node is None or not folder.wandb_id.is_file():
        return False
    values = {f"evaluation/{name}": found.value for name, found in by_name(evaluation).items()}
    logger = build("logger.wandb", node, run_folder=folder)
    close_loggers([logger], summary=values, artifacts={}, succeeded=True)
    return True
