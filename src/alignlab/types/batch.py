"""Micro-batches, optimizer steps, and the counts of a step.

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
        source_positions: Position, in ``input_ids`` flattened, whose hidden state predicts the label. Shape ``[N]``.
        labels: Supervised token ids. Shape ``[N]``.
        sequence_ids: Sequence that each supervised token belongs to, in 0…S-1. Shape ``[N]``.
        group_ids: Group that each sequence belongs to, ascending; the first of a group is the chosen. Shape ``[S]``.
        columns: Numeric columns per sequence, each of shape ``[S]``.
        token_columns: Numeric columns per supervised token, each of shape ``[N]``.
        num_tokens: Real tokens, prompts counted once, padding not counted.
        last_positions: Position, in ``input_ids`` flattened, of each sequence's last token. Shape ``[S]``.
        counted: 0 for a filler, with which a rank runs as many micro-batches as the others; multiplies every sum and
            weight.
        origins: File and line of its rows, for messages.
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
    counted: int = 1
    origins: Sequence[str] = ()

    @property
    def num_sequences(self) -> int:
        """S, the number of completions."""
        return self.group_ids.numel()


@dataclass(frozen=True, kw_only=True)
class StepTotals:
    """Counts of one optimizer step over all micro-batches and all ranks: the units that a loss may have.

    Args:
        supervised_tokens: Targets of the loss.
        sequences: Completions.
        groups: Prompts with their completions (pairs, groups, documents).
        tokens: Tokens that pass through the model.
        rows: Rows of data.
        chosen_tokens: Targets of the first completion of every group, counted once per completion that follows it.
        columns: Sums over the rows of each numeric column with one value per row.
    """

    supervised_tokens: int
    sequences: int
    groups: int
    tokens: int
    rows: int
    chosen_tokens: int = 0
    columns: Mapping[str, float] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Pairs of a first completion with another of its group."""
        return self.sequences - self.groups

    def count(self, unit: str) -> float:
        """How many of a unit the step has.

        Args:
            unit: One of ``UNITS``, or the name of a numeric column, whose sum is taken.

        Raises:
            InputError: There is no such unit.
        """
        if unit in UNITS:
            return getattr(self, unit)
        if unit in self.columns:
            return self.columns[unit]
        raise InputError(f"a loss per {unit!r}", "a step counts no such unit", nearest(unit, [*UNITS, *self.columns]))


UNITS = ("supervised_tokens", "sequences", "pairs", "groups", "rows", "tokens", "chosen_tokens")
"""What every optimizer step counts."""


class StepBatch:
    """One optimizer step of this rank. Not a dataclass: Lightning would walk through its fields to cast them.

    Args:
        micro_batches: They go through the model one after the other.
        totals: Sizes of the step over all ranks.
        epoch: Passes over the training rows after this step.
        companions: Of each micro-batch the companions of its rows, where the method wants them.
        metrics: What is logged with the step beside what the method says of it.
        has_signal: Whether the step must give every trained tensor a gradient; the same on all ranks.
    """

    def __init__(
        self,
        micro_batches: list[MicroBatch],
        totals: StepTotals,
        epoch: float,
        companions: Sequence[MicroBatch] = (),
        metrics: Mapping[str, float] | None = None,
        has_signal: bool = True,
    ):
        self.micro_batches, self.totals, self.epoch, self.companions = micro_batches, totals, epoch, companions
        self.metrics, self.has_signal = metrics or {}, has_signal

    def to(self, device, non_blocking: bool = False) -> "StepBatch":
        """The same step with its tensors on another device."""
        batches, companions = (
            [move(batch, device, non_blocking) for batch in some] for some in (self.micro_batches, self.companions)
        )
        return StepBatch(batches, self.totals, self.epoch, companions, self.metrics, self.has_signal)


def move(value: Any, device, non_blocking: bool = False) -> Any:
    """A copy of a batch, or of any nesting of dicts and tensors in it, on another device."""
    if isinstance(value, MicroBatch):
        fields = {name: move(part, device, non_blocking) for name, part in vars(value).items()}
        return MicroBatch(**fields)
    if isinstance(value, dict):
        return {name: move(part, device, non_blocking) for name, part in value.items()}
    return value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
