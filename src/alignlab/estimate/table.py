"""An estimate as text of at most 80 columns, and as JSON values."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignlab.estimate.cards import GIB
from alignlab.estimate.changes import Change
from alignlab.estimate.estimate import Estimate
from alignlab.estimate.memory import MIB, MOMENTS

WIDTH = 80

Changes = Sequence[tuple[Change, Estimate]]


def estimate_card(found: Estimate, changes: Changes, mfu: float) -> RenderableType:
    """An estimate to print.

    Args:
        found: The estimate.
        changes: Changes by which it would fit.
        mfu: The assumed utilisation.
    """
    return Group(memory_table(found), Text(work_line(found, mfu)), Text(verdict(found)), *changes_table(changes))


def memory_table(found: Estimate) -> Table:
    """Terms by moment, in MiB per process."""
    memory = found.memory
    moments = [moment for moment in MOMENTS if memory.terms["libraries"].get(moment)]
    table = Table("MiB per process", box=box.SIMPLE_HEAD, width=min(WIDTH, 36 + 11 * len(moments)), show_footer=True)
    table.columns[0].footer = "together"
    for moment in moments:
        table.add_column(moment, justify="right", footer=mebibytes(memory.total(moment)))
    for name, sizes in memory.terms.items():
        table.add_row(name, *(mebibytes(sizes.get(moment, 0)) for moment in moments))
    return table


def mebibytes(num_bytes: float) -> str:
    """Bytes in MiB, as text; empty for none."""
    return f"{num_bytes / MIB:,.0f}" if num_bytes else ""


def work_line(found: Estimate, mfu: float) -> str:
    """Tokens, steps, operations, bytes sent and time."""
    run, work = found.run, found.work
    lines = [
        f"A step: {run.batches.tokens:,.0f} tokens in {run.batches.per_step} micro-batches per process,"
        f" {work.flops / 1e12:,.3g} TFLOP.",
        f"The run: {run.batches.steps:,} steps, {run.batches.steps * run.batches.tokens:,.0f} tokens.",
    ]
    if work.sent:
        lines.insert(1, f"Each process sends {work.sent / GIB:,.3g} GiB per step.")
    if found.memory.host:
        lines.append(f"In host memory, per process: {found.memory.host / GIB:,.1f} GiB.")
    if run.offloads_activations:
        lines.append("Offloading of activations is not counted: they are above as without it.")
    if work.seconds is not None:
        total = work.seconds * run.batches.steps
        lines.append(f"At {mfu:.0%} of the peak: {work.seconds:,.3g} s per step, {total / 3600:,.2g} h in all.")
    return "\n".join(lines)


def verdict(found: Estimate) -> str:
    """Whether it fits, and with how much."""
    memory, words = found.memory, "fits" if found.fits else "does not fit"
    needed, there = memory.peak / GIB, found.capacity / GIB
    where = found.run.hardware
    return f"\nOn {where} this {words}: {needed:,.1f} of {there:,.1f} GiB per process, in {memory.peak_moment}."


def changes_table(changes: Changes) -> list[RenderableType]:
    """Changes by which it would fit, with what they cost."""
    if not changes:
        return []
    table = Table("type", "GiB", "costs", box=box.SIMPLE_HEAD, width=WIDTH)
    table.columns[1].justify = "right"
    for change, after in changes:
        table.add_row(change.words, f"{after.memory.peak / GIB:,.1f}", change.costs)
    return [Text("It would with one of these:"), table]


def as_json(found: Estimate, changes: Changes) -> dict[str, Any]:
    """An estimate as JSON values, in bytes, seconds and floating-point operations."""
    batches = found.run.batches
    return {
        "hardware": str(found.run.hardware),
        "fits": found.fits,
        "capacity_bytes": found.capacity,
        "peak_bytes": found.memory.peak,
        "peak_moment": found.memory.peak_moment,
        "host_bytes": found.memory.host,
        "terms_bytes": found.memory.terms,
        "parameters": found.run.policy.numbers,
        "trained_parameters": found.run.policy.trained,
        "steps": batches.steps,
        "tokens_per_step": batches.tokens,
        "micro_batches_per_step": batches.per_step,
        "flops_per_step": found.work.flops,
        "sent_bytes_per_step": found.work.sent,
        "seconds_per_step": found.work.seconds,
        "changes": [{"type": one.words, "costs": one.costs, "peak_bytes": e.memory.peak} for one, e in changes],
    }
