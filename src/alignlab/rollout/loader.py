"""The loader of online methods: optimizer steps made of what the policy has just sampled.

A rollout takes the prompts of a few steps, has them completed and scored, and is learned from step by step, as often as
``num_iterations`` says. All ranks hold all rows of a rollout, so every step is planned and balanced like any other.
What is left of a rollout is part of the checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from alignlab.data.batching.collate import collate, totals
from alignlab.data.batching.plan import PlanSettings, plan_epoch, plan_step
from alignlab.types.batch import StepBatch
from alignlab.types.rows import TokenRow

if TYPE_CHECKING:
    pass

Prompts = Callable[[int], tuple[Sequence[TokenRow], float]]
"""Number of a window of prompts → its rows, and the epochs that are over once it is used."""

NextPrompts = Callable[..., Sequence[TokenRow]]
"""Takes the next prompts: so many, or without a number those of a window."""

Produce = Callable[[int, NextPrompts], tuple[list[TokenRow], dict[str, float]]]
"""Number of a rollout, and where to take prompts → rows with completions, and what is logged; the same on all ranks."""


class Stateful(Protocol):
    """What a checkpoint keeps beside the loader's own state."""

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a state."""


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """How a rollout becomes optimizer steps.

    Args:
        plan: ``global_batch_size`` counts prompts per optimizer step.
        steps_per_rollout: Optimizer steps into which the rows of a rollout are cut.
        num_iterations: Times that each row is learned from.
        packing: Flat micro-batches without padding; else padded ones.
        pad_token_id: Filling of the padded layout.
    """

    plan: PlanSettings
    steps_per_rollout: int
    num_iterations: int
    packing: bool
    pad_token_id: int


class RolloutLoader:
    """Yields the collated steps of one rank; goes on where a checkpoint left off, also within a rollout.

    Args:
        prompts: Gives windows of prompts.
        produce: Makes a rollout of them.
        settings: How it becomes steps.
        num_steps: Steps to yield in all.
        rank: This process.
        num_ranks: Processes among which each step is shared.
        state: What else is saved and restored with the loader.
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
        self.next_step = self.next_rollout = self.next_window = self.next_place = 0
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
        """Where it stands, and what is left of the rollout, as plain containers."""
        own = {name: getattr(self, name) for name in SAVED} | {"rows": [vars(row) for row in self._rows_left()]}
        return own | ({} if self.state is None else {"state": self.state.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
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
        """So many prompts, or those of a window, from where the last ones ended: none is left out."""
        taken: list[TokenRow] = []
        while number is None or len(taken) < number:
            rows, self.epoch = self.prompts(self.next_window)
            number = len(rows) if number is None else number
            part = rows[self.next_place : self.next_place + number - len(taken)]
            taken += part
            self.next_place += len(part)
            if self.next_place == len(rows):
                self.next_window, self.next_place = self.next_window + 1, 0
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
    """Whether there is anything to learn from its completions: some are better than others."""
    return bool((row.token_columns | row.columns)["advantages"].any())


SAVED = ("next_step", "next_rollout", "next_window", "next_place", "epoch", "steps")
