"""The loader of online methods: optimizer steps made of what the policy has just sampled.

A rollout takes the prompts of a few steps, has them completed and scored, and is learned from step by step, as often as
``num_iterations`` says. All ranks hold all rows of a rollout, so every step is planned and balanced like any other.
What is left of a rollout is part of the checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from alignlab.data.batching.collate import collate, totals
from alignlab.data.batching.plan import PlanSettings, plan_epoch, plan_step
from alignlab.data.batching.steps import table_steps
from alignlab.data.datamodule import DataModule
from alignlab.types.batch import StepBatch
from alignlab.types.rows import TokenRow

Prompts = Callable[[int], tuple[Sequence[TokenRow], float]]
"""Number of a window of prompts → its rows, and the epochs that are over once it is used."""

NextPrompts = Callable[..., Sequence[TokenRow]]
"""Takes the next prompts: so many, or without a number those of a window."""

Produce = Callable[[int, NextPrompts], list[TokenRow]]
"""Number of a rollout, and where to take prompts → rows with completions, the same on all ranks."""


def prompt_windows(data: DataModule, steps_per_rollout: int) -> Prompts:
    """Windows of prompts of as many steps as a rollout has."""
    plan = replace(data.plan, global_batch_size=data.plan.global_batch_size * steps_per_rollout)

    def window(number: int) -> tuple[Sequence[TokenRow], float]:
        step = next(table_steps(data.train, plan, 0, 1, number))
        return step.rows, step.epoch

    return window


@dataclass(frozen=True, kw_only=True)
class ExperienceSettings:
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


class ExperienceLoader:
    """Yields the collated steps of one rank; goes on where a checkpoint left off, also within a rollout.

    Args:
        prompts: Gives windows of prompts.
        produce: Makes a rollout of them.
        settings: How it becomes steps.
        num_steps: Steps to yield in all.
        rank: This process.
        num_ranks: Processes among which each step is spread.
    """

    def __init__(
        self,
        prompts: Prompts,
        produce: Produce,
        *,
        settings: ExperienceSettings,
        num_steps: int,
        rank: int,
        num_ranks: int,
    ):
        self.prompts, self.produce, self.settings = prompts, produce, settings
        self.num_steps, self.rank, self.num_ranks = num_steps, rank, num_ranks
        self.next_step = self.next_rollout = self.next_window = self.next_place = 0
        self.epoch = 0.0
        self.rows: list[TokenRow] = []
        self.steps: list[list[int]] = []

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
        places = {name: getattr(self, name) for name in PLACES}
        return places | {"rows": [asdict(row) for row in self.rows] if self.steps else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was taken."""
        for name in PLACES:
            setattr(self, name, state[name])
        self.rows = [TokenRow(**row) for row in state["rows"]]

    def _roll_out(self) -> None:
        self.rows = self.produce(self.next_rollout, self._next_prompts)
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
        return StepBatch(batches, sizes, self.epoch)


PLACES = ("next_step", "next_rollout", "next_window", "next_place", "epoch", "steps")
