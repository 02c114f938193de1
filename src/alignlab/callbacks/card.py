"""The start card, which shows what a run will train on, and the result card, which shows its results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignlab.callbacks.progress import duration, reward_text, short_number
from alignlab.data.preview import Segment

MAX_PIECE_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Facts about the model to train.

    Args:
        name: Name of the model as typed.
        architecture: Class of the model.
        num_parameters: Number of all parameters.
        num_trainable: Number of trainable parameters.
        dtype: Number format of the trainable parameters.
        attention: Attention implementation.
        adapter: Kind of adapter; None for full fine-tuning.
        device: Device and precision.
        optimizer: Optimizer, peak learning rate and schedule.
    """

    name: str
    architecture: str
    num_parameters: int
    num_trainable: int
    dtype: str
    attention: str
    adapter: str | None
    device: str
    optimizer: str


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """Facts about how rows become optimizer steps.

    Args:
        global_batch_size: Rows per optimizer step over all ranks.
        batch_size_per_device: Maximum rows of a micro-batch.
        max_tokens_per_micro_batch: Maximum tokens of a micro-batch; None for no limit.
        num_ranks: Number of data-parallel ranks.
        num_micro_batches: Minimum number of micro-batches per rank and optimizer step.
        tokens_per_step: Mean tokens per optimizer step; None if unknown (streams).
        num_steps: Optimizer steps of the run; None if unknown.
        num_epochs: Epochs of the run; None if unknown.
    """

    global_batch_size: int
    batch_size_per_device: int
    max_tokens_per_micro_batch: int | None
    num_ranks: int
    num_micro_batches: int
    tokens_per_step: float | None
    num_steps: int | None
    num_epochs: float | None


def start_card(
    title: str,
    *,
    model: ModelFacts,
    data: Mapping[str, Mapping[str, int]],
    unread: Sequence[str],
    batch: BatchFacts,
    loss_on: str,
    example: Iterable[Segment],
    folder: Path,
) -> RenderableType:
    """Make the start card, to be checked before a run.

    Args:
        title: Title of the card, such as ``sft · pocket · arithmetic``.
        model: Facts about the model.
        data: Part (``train``, ``validation``) → count by name (rows, tokens, …).
        unread: Lines about columns of the data that nothing reads.
        batch: Facts about optimizer steps.
        loss_on: Which tokens are supervised, in words.
        example: A decoded row.
        folder: The run's folder.
    """
    columns = [Text("\n".join(unread), style="dim")] if unread else []
    blocks = (model_table(model), counts_table(data), *columns, batch_table(batch), example_text(example, loss_on))
    body = Group(*(line for block in blocks for line in (block, Text())), Text(f"run folder  {folder}", style="dim"))
    return Panel(body, title=f"[bold]{title}", title_align="left", border_style="blue", padding=(1, 2))


def model_table(model: ModelFacts) -> Table:
    """Make the table of the model's facts."""
    share = model.num_trainable / max(1, model.num_parameters)
    size = f"{short_number(model.num_trainable)} of {short_number(model.num_parameters)} parameters ({share:.2%})"
    return _pairs(
        "model",
        {
            "name": f"{model.name} ({model.architecture})",
            "trains": f"{size}, {model.adapter or 'full fine-tuning'}",
            "runs on": f"{model.device}, weights {model.dtype}, attention {model.attention}",
            "optimizer": model.optimizer,
        },
    )


def counts_table(data: Mapping[str, Mapping[str, int]]) -> Table:
    """Make the table of counts, with a line per part of the data."""
    names = list(dict.fromkeys(name for counts in data.values() for name in counts))
    table = _table("data", "", *names)
    for part, counts in data.items():
        table.add_row(part, *(f"{counts[name]:,}" if name in counts else "–" for name in names))
    return table


def batch_table(batch: BatchFacts) -> Table:
    """Make the table of how rows become an optimizer step, and of the number of steps."""
    tokens = "–" if batch.tokens_per_step is None else f"{batch.tokens_per_step:,.0f}"
    limit = batch.max_tokens_per_micro_batch
    micro = f"≤ {batch.batch_size_per_device:,}" + (f", ≤ {limit:,} tokens" if limit else "")
    steps = "–" if batch.num_steps is None else f"{batch.num_steps:,}"
    epochs = "" if batch.num_epochs is None else f" (epochs: {batch.num_epochs:.3g})"
    table = _table("batch", "rows in a micro-batch", "micro-batches", "ranks", "rows in a step", "tokens", "steps")
    table.add_row(
        micro,
        f"× {batch.num_micro_batches:,}",
        f"× {batch.num_ranks:,}",
        f"→ {batch.global_batch_size:,}",
        tokens,
        steps + epochs,
    )
    return table


def example_text(segments: Iterable[Segment], loss_on: str) -> Text:
    """Format a decoded example: supervised text green between ⟦ and ⟧, other text dim, long segments shortened.

    Pieces are named on lines of their own, unless there are only a prompt and its completion.
    """
    segments = list(segments)
    named = len({segment.piece for segment in segments}) > 2
    text = Text("example", style="bold")
    marked = ", between ⟦ and ⟧" if any(segment.supervised for segment in segments) else ""
    text.append(f"  the loss is on {loss_on}{marked}\n", style="not bold dim")
    for number, (piece, parts) in enumerate(groupby(segments, key=lambda segment: segment.piece)):
        if named:
            text.append("\n" * (number > 0) + f"{piece}\n", style="not bold cyan")
        for part in parts:
            shown = shortened(part.text)
            style = "not bold green" if part.supervised else "not bold dim"
            text.append(f"⟦{shown}⟧" if part.supervised else shown, style=style)
    return text


def shortened(text: str) -> str:
    """Remove the middle of a text that is longer than ``MAX_PIECE_CHARACTERS``."""
    if len(text) <= MAX_PIECE_CHARACTERS:
        return text
    half = MAX_PIECE_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"


def result_card(
    summary: Mapping[str, Any], *, folder: Path, files: Sequence[Path] = (), upload: str | None = None
) -> RenderableType:
    """Make the result card of a run: held-out results before and after, reward of the last rollout, cost, and paths.

    Args:
        summary: Content of summary.json.
        folder: The run's folder.
        files: Files in the folder to list.
        upload: Command that sends the run to its tracker; None if there is nothing to send.
    """
    before, after = summary["initial_metrics"], summary["metrics"]
    names = sorted(name for name in {**before, **after} if name.startswith("val/"))
    table = _table("held-out rows", "", "before", "after")
    for name in names:
        table.add_row(name, _value(before.get(name)), _value(after.get(name)))
    rate = summary["tokens_per_second"]
    speed = f", {short_number(rate)} tokens/s" if rate else ""
    cost = (
        f"{summary['steps']:,} steps, {short_number(summary['tokens'])} tokens in"
        f" {duration(summary['wall_seconds'])}{speed}, peak memory {summary['peak_memory_mib']:,.0f} MiB"
    )
    rewarded = summary["metrics"].get("reward/mean") is not None
    reward = f"{reward_text(summary['metrics'])} in the last rollout" if rewarded else ""
    if summary["best"]:
        cost += f"\nmodel/ has the {kept_weights(**summary['best'])}"
    paths = [Text(f"{path.name:<14}{path}", style="dim") for path in files]
    results = [*([table, Text()] if names else []), *([Text(reward), Text()] if reward else [])]
    later = [Text(f"{'upload':<14}{upload}")] if upload else []
    body = Group(*results, Text(cost), Text(), Text(f"{'run':<14}{folder}"), *paths, *later)
    title = f"[bold]{summary['status']}"
    return Panel(body, title=title, title_align="left", border_style="green", padding=(1, 2))


LOWEST = {"min": "lowest", "max": "highest"}


def kept_weights(metric: str, mode: str, step: int, value: float) -> str:
    """The weights of a run that kept the best ones; the arguments are an entry of summary.json."""
    when, which = (
        f"of step {step:,}" if step else "from before the first step",
        {"min": "lowest", "max": "highest"}[mode],
    )
    return f"weights {when}, with the {which} {metric}: {_value(value)}"


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _pairs(title: str, pairs: Mapping[str, str]) -> Table:
    table = _table(title, "", "")
    table.show_header = False
    for name, value in pairs.items():
        table.add_row(name, value)
    table.columns[1].justify = "left"
    return table


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(first, style="cyan", header_style="dim")
    for column in columns:
        table.add_column(column, justify="right", header_style="dim")
    return table
