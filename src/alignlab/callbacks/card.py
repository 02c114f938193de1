"""The start card and the result card: what is about to be trained on what, and what came of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from alignlab.callbacks.progress import duration, short_number

Piece = tuple[str, bool]
"""A stretch of decoded text, and whether the loss sees it."""

MAX_PIECE_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is trained.

    Args:
        name: As the user named it.
        architecture: Class of the model.
        num_parameters: All parameters.
        num_trainable: Those that training changes.
        dtype: Of the trained parameters.
        attention: Implementation in use.
        adapter: Kind of adapter; None trains the model itself.
        device: Where it runs, with the precision.
    """

    name: str
    architecture: str
    num_parameters: int
    num_trainable: int
    dtype: str
    attention: str
    adapter: str | None
    device: str


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """How rows become optimizer steps; the first two are the user's, the rest follows.

    Args:
        global_batch_size: Rows per optimizer step, all ranks.
        batch_size_per_device: Rows that go through the model at once, at most.
        max_tokens_per_micro_batch: Tokens that go through the model at once, at most; None has no limit.
        num_ranks: Data-parallel ranks.
        num_micro_batches: Micro-batches per rank and optimizer step, at least.
        tokens_per_step: Mean tokens per optimizer step; None where not known beforehand (streams).
        num_steps: Optimizer steps of the run; None where not known.
        num_epochs: Passes over the rows in these steps; None where not known.
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
    batch: BatchFacts,
    example: Iterable[Piece],
    folder: Path,
) -> RenderableType:
    """Everything a person wants to check before a run.

    Args:
        title: ``sft · pocket · arithmetic``.
        model: What is trained.
        data: Part (``train``, ``validation``) → count by name (rows, tokens, …).
        batch: How rows become optimizer steps.
        example: A decoded row in pieces, the supervised ones marked.
        folder: The run's folder.
    """
    parts = (model_table(model), counts_table(data), batch_table(batch), example_text(example))
    body = Group(*(line for part in parts for line in (part, Text())), Text(f"run folder  {folder}", style="dim"))
    return Panel(body, title=f"[bold]{title}", title_align="left", border_style="blue", padding=(1, 2))


def model_table(model: ModelFacts) -> Table:
    """The model in two columns."""
    share = model.num_trainable / max(1, model.num_parameters)
    size = f"{short_number(model.num_trainable)} of {short_number(model.num_parameters)} parameters ({share:.2%})"
    return _pairs(
        "model",
        {
            "name": f"{model.name} ({model.architecture})",
            "trains": f"{size}, {model.adapter or 'full fine-tuning'}",
            "runs on": f"{model.device}, weights {model.dtype}, attention {model.attention}",
        },
    )


def counts_table(data: Mapping[str, Mapping[str, int]]) -> Table:
    """Counts with a line per part of the data."""
    names = list(dict.fromkeys(name for counts in data.values() for name in counts))
    table = _table("data", "", *names)
    for part, counts in data.items():
        table.add_row(part, *(f"{counts[name]:,}" if name in counts else "–" for name in names))
    return table


def batch_table(batch: BatchFacts) -> Table:
    """How rows become an optimizer step, from left to right, and how many steps there are."""
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


def example_text(pieces: Iterable[Piece]) -> Text:
    """A decoded example; what the loss sees is green, between ⟦ and ⟧, the rest dim; long stretches are shortened."""
    text = Text("example", style="bold")
    text.append("  the loss sees what stands between ⟦ and ⟧\n", style="not bold dim")
    for piece, supervised in joined(pieces):
        piece = shortened(piece)
        text.append(f"⟦{piece}⟧" if supervised else piece, style="not bold green" if supervised else "not bold dim")
    return text


def shortened(text: str) -> str:
    """The text without its middle where it is longer than ``MAX_PIECE_CHARACTERS``."""
    if len(text) <= MAX_PIECE_CHARACTERS:
        return text
    half = MAX_PIECE_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring pieces of the same kind as one."""
    merged: list[Piece] = []
    for text, supervised in pieces:
        if merged and merged[-1][1] == supervised:
            merged[-1] = (merged[-1][0] + text, supervised)
        else:
            merged.append((text, supervised))
    return merged


def result_card(summary: Mapping[str, Any], *, folder: Path, files: Sequence[Path] = ()) -> RenderableType:
    """What came of a run: held-out results before and after, the cost, where things lie.

    Args:
        summary: As in summary.json.
        folder: The run's folder.
        files: What in it to point at.
    """
    after = {name: value for name, value in summary["metrics"].items() if name.startswith("val/")}
    table = _table("held-out rows", "", "before", "after")
    for name, value in sorted(after.items()):
        table.add_row(name, _value(summary["initial_metrics"].get(name)), _value(value))
    rate = summary["tokens_per_second"]
    speed = f", {short_number(rate)} tokens/s" if rate else ""
    cost = (
        f"{summary['steps']:,} steps, {short_number(summary['tokens'])} tokens in"
        f" {duration(summary['wall_seconds'])}{speed}, peak memory {summary['peak_memory_mib']:,.0f} MiB"
    )
    places = [Text(f"{path.name:<14}{path}", style="dim") for path in files]
    body = Group(*([table, Text()] if after else []), Text(cost), Text(), Text(f"{'run':<14}{folder}"), *places)
    title = f"[bold]{summary['status']}"
    return Panel(body, title=title, title_align="left", border_style="green", padding=(1, 2))


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
