"""Micro-batches, optimizer steps and their counts.

Legend of axes, used in every docstring of the repository:

    B  sequences or prompts in the micro-batch      T  tokens of a (flat or padded) row
    G  completions per prompt                       N  supervised tokens of the micro-batch
    K  rejected completions per prompt              S  sequences (completions) of the micro-batch
    V  vocabulary                                   [] a scalar

A *group* is a prompt followed by its completions: each completion attends to its prompt and to itself. SFT has one
completion per group, a preference 1 + K (the chosen first), GRPO G. A text block is one completion without a prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from alignlab.errors import InputError, nearest


@dataclass
class MicroBatch:
    """Input of one forward pass, in the flat or in the padded layout; the fields mean the same in both.

    Args:
        inputs: Keyword arguments of the decoder's forward: ``input_ids [B, T]`` (flat: B = 1), ``position_ids``, and
            either ``layout`` (flat) or ``attention_mask`` (padded).
        source_positions: Position, in the flattened ``input_ids``, of the hidden state that predicts the label. Shape
            ``[N]``.
        labels: Supervised token ids. Shape ``[N]``.
        sequence_ids: Sequence of each supervised token, in 0…S-1, ascending. Shape ``[N]``.
        group_ids: Group of each sequence, ascending; the first sequence of a group is the chosen. Shape ``[S]``.
        columns: Numeric columns per sequence, each of shape ``[S]``.
        token_columns: Numeric columns per supervised token, each of shape ``[N]``.
        turn_weights: Weight of each supervised token by its turn; None if all are 1. Shape ``[N]``.
        num_tokens: Number of tokens without padding, with each prompt counted once.
        last_positions: Position, in the flattened ``input_ids``, of the last token of each sequence. Shape ``[S]``.
        counted: Factor of every sum and weight: 1, or 0 for a filler that gives all ranks the same number of
            micro-batches.
        origins: File and line of each row, for messages.
    """

    inputs: dict[str, Any]
    source_positions: Tensor
    labels: Tensor
    sequence_ids: Tensor
    group_ids: Tensor
    columns: dict[str, Tensor]
    num_tokens: int
    last_positions: Tensor
    token_columns: dict[str, Tensor] = field(default_factory=dict)
    turn_weights: Tensor | None = None
    counted: int = 1
    origins: Sequence[str] = ()

    @property
    def num_sequences(self) -> int:
        """S, the number of completions."""
        return self.group_ids.numel()


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """Counts of one optimizer step over all micro-batches and ranks, by which losses are normalised.

    Args:
        supervised_tokens: Number of supervised tokens.
        sequences: Number of completions.
        groups: Number of groups (prompts with their completions, or documents).
        tokens: Number of tokens that pass through the model.
        rows: Number of rows of data.
        chosen_tokens: Number of supervised tokens of the chosen completions, each counted once per rejected one.
        weighted: The counts of all units with each row, and each supervised token, counted by its weight; empty if
            nothing has a weight.
        columns: Sum over the rows of each numeric column with one value per row.
    """

    supervised_tokens: int
    sequences: int
    groups: int
    tokens: int
    rows: int
    chosen_tokens: int = 0
    weighted: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, float] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Number of pairs of a chosen completion with a rejected one of its group."""
        return self.sequences - self.groups

    def count(self, unit: str) -> float:
        """The count of a unit in the step, by weight where the data has weights.

        Args:
            unit: One of ``UNITS``, or the name of a numeric column, for its sum.

        Raises:
            InputError: There is no such unit.
        """
        if unit in UNITS:
            return self.weighted.get(unit, getattr(self, unit))
        if unit in self.columns:
            return self.columns[unit]
        raise InputError(f"a loss per {unit!r}", "a step counts no such unit", nearest(unit, [*UNITS, *self.columns]))


UNITS = ("supervised_tokens", "sequences", "pairs", "groups", "rows", "tokens", "chosen_tokens")
"""Units that every optimizer step counts."""


class StepBatch:
    """This rank's part of one optimizer step. Not a dataclass, because Lightning would cast the fields of one.

    Args:
        micro_batches: Micro-batches of the step, in order.
        totals: Counts of the step over all ranks.
        epoch: Number of passes over the training rows after this step.
        mismatched: For each micro-batch, its rows with the completions of other rows, if the method needs them.
        metrics: Values to log with the step, in addition to the metrics of the method.
        has_signal: Whether every trained tensor should receive a gradient in this step; the same on all ranks.
        validation_set: Name of the validation set of the rows, if they are of one.
    """

    def __init__(
        self,
        micro_batches: list[MicroBatch],
        totals: StepTotals,
        epoch: float,
        mismatched: Sequence[MicroBatch] = (),
        metrics: Mapping[str, float] | None = None,
        has_signal: bool = True,
        validation_set: str | None = None,
    ):
        self.micro_batches, self.totals, self.epoch, self.mismatched = micro_batches, totals, epoch, mismatched
        self.metrics, self.has_signal, self.validation_set = metrics or {}, has_signal, validation_set

    def to(self, device, non_blocking: bool = False) -> "StepBatch":
        """Copy the step to a device."""
        batches, mismatched = (
            [move(batch, device, non_blocking) for batch in group] for group in (self.micro_batches, self.mismatched)
        )
        kept = (self.metrics, self.has_signal, self.validation_set)
        return StepBatch(batches, self.totals, self.epoch, mismatched, *kept)


def move(value: Any, device, non_blocking: bool = False) -> Any:
    """Copy a batch, or any nesting of dicts and tensors in one, to a device."""
    if isinstance(value, MicroBatch):
        fields = {name: move(part, device, non_blocking) for name, part in vars(value).items()}
        return MicroBatch(**fields)
    if isinstance(value, dict):
        return {name: move(part, device, non_blocking) for name, part in value.items()}
    return value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
