"""Loader of methods with a rollout: makes optimizer steps of the rows of a rollout.

A rollout uses the prompts of ``steps_per_rollout`` steps. Its rows are split into as many steps, ``num_iterations``
times. All ranks have all rows of a rollout, so steps are planned and balanced as for other methods. The rows and steps
of a rollout that are left are part of the checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from alignlab.data.batching.collate import collate, totals
from alignlab.data.batching.plan import plan_epoch, plan_step
from alignlab.data.settings import PlanSettings
from alignlab.types.batch import StepBatch
from alignlab.types.rows import TokenRow

Prompts = Callable[[int], tuple[Sequence[TokenRow], float]]
"""Number of a window of prompts → its rows, and the number of epochs after them."""

NextPrompts = Callable[..., Sequence[TokenRow]]
"""Gives the next prompts: as many as requested, or a window of them by default."""

Produce = Callable[[int, NextPrompts], tuple[list[TokenRow], dict[str, float]]]
"""Number of a rollout, and source of prompts → rows with completions, and metrics; the same on all ranks."""


class Stateful(Protocol):
    """An object whose state is saved with the loader."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as Python containers and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """How a rollout is split into optimizer steps.

    Args:
        plan: ``global_batch_size`` counts prompts per optimizer step.
        steps_per_rollout: Number of optimizer steps into which the rows of a rollout are split.
        num_iterations: Number of passes over the rows.
        packing: Whether micro-batches are flat, without padding, instead of padded.
        pad_token_id: Padding token of the padded layout.
    """

    plan: PlanSettings
    steps_per_rollout: int
    num_iterations: int
    packing: bool
    pad_token_id: int


class RolloutLoader:
    """Yields the collated steps of one rank; resumes from a checkpoint, also within a rollout.

    Args:
        prompts: Gives windows of prompts.
        produce: Makes the rows of a rollout.
        settings: How a rollout is split into steps.
        num_steps: Total number of steps.
        rank: Rank of this process.
        num_ranks: Number of ranks.
        state: Object whose state is saved and restored with the loader.
    """

    def __init__(
        self,
        prompts: Prompts,
        produce: Produce,
        *,
        settings: LoaderSettings,
        num_steps: int,
        rank: int,
        num_ranks: int,
        state: Stateful | None = None,
    ):
        self.prompts, self.produce, self.settings = prompts, produce, settings
        self.num_steps, self.rank, self.num_ranks = num_steps, rank, num_ranks
        self.next_step = self.next_rollout = self.next_window = self.next_prompt = 0
        self.epoch = 0.0
        self.rows: list[TokenRow] = []
        self.steps: list[list[int]] = []
        self.metrics: dict[str, float] = {}
        self.state = state

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[StepBatch]:
        while self.next_step < self.num_steps:
            if not self.steps:
                self._roll_out()
            self.next_step += 1
            yield self._collate([self.rows[index] for index in self.steps.pop(0)])

    def state_dict(self) -> dict[str, Any]:
        """The position in the run, and the rows of the rollout if steps are left, as Python containers."""
        own = {name: getattr(self, name) for name in SAVED} | {"rows": [vars(row) for row in self._rows_left()]}
        return own | ({} if self.state is None else {"state": self.state.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        for name in SAVED:
            setattr(self, name, state[name])
        self.rows = [TokenRow(**row) for row in state["rows"]]
        if self.state is not None:
            self.state.load_state_dict(state["state"])

    def _rows_left(self) -> list[TokenRow]:
        return self.rows if self.steps else []

    def _roll_out(self) -> None:
        self.rows, self.metrics = self.produce(self.next_rollout, self._next_prompts)
        number = self.next_rollout
        size = -(-len(self.rows) // self.settings.steps_per_rollout)
        plan = replace(self.settings.plan, global_batch_size=max(1, size), order="shuffled")
        lengths = np.array([len(row.tokens) for row in self.rows])
        passes = range(number * self.settings.num_iterations, (number + 1) * self.settings.num_iterations)
        self.steps = [step.tolist() for epoch in passes for step in plan_epoch(lengths, plan, epoch)]
        self.next_rollout += 1

    def _next_prompts(self, number: int | None = None) -> list[TokenRow]:
        """The next ``number`` prompts, or a window of them; no prompt is skipped."""
        taken: list[TokenRow] = []
        while number is None or len(taken) < number:
            rows, self.epoch = self.prompts(self.next_window)
            number = len(rows) if number is None else number
            found = rows[self.next_prompt : self.next_prompt + number - len(taken)]
            taken += found
            self.next_prompt += len(found)
            if self.next_prompt == len(rows):
                self.next_window, self.next_prompt = self.next_window + 1, 0
        return taken

    def _collate(self, rows: list[TokenRow]) -> StepBatch:
        sizes = totals(rows)
        planned = plan_step([len(row.tokens) for row in rows], self.settings.plan, self.num_ranks)[self.rank]
        batches = [
            collate(
                [rows[index] for index in batch.rows],
                packing=self.settings.packing,
                pad_token_id=self.settings.pad_token_id,
                counted=batch.counted,
            )
            for batch in planned
        ]
        metrics, self.metrics = self.metrics, {}  # logged once per rollout, with its first step
        return StepBatch(batches, sizes, self.epoch, metrics=metrics, has_signal=any(map(_has_signal, rows)))


def _has_signal(row: TokenRow) -> bool:
    """Whether any advantage of the row is not zero."""
    return bool((row.token_columns | row.columns)["advantages"].any())


SAVED = ("next_step", "next_rollout", "next_window", "next_prompt", "epoch", "steps")
