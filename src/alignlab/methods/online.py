"""What methods share that learn from completions they sample themselves.

A rollout is: prompts → G completions each → rewards → advantages → rows. Every rank samples and scores its share of the
prompts and then holds all rows, so that advantages, batches and what is logged do not depend on the number of ranks.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from alignlab.batches import MicroBatch, Prompt, TokenRow
from alignlab.data.datamodule import DataModule
from alignlab.data.steps import table_steps
from alignlab.data.templates import choose_template, stop_tokens
from alignlab.errors import InputError
from alignlab.methods.annotate import annotate, everyone
from alignlab.methods.experience import ExperienceLoader, ExperienceSettings
from alignlab.methods.referenced import Referenced
from alignlab.methods.samples import rollout_metrics
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.experience import Group, split
from alignlab.training.reduction import num_ranks

log = logging.getLogger(__name__)

MAX_EMPTY_ROLLOUTS = 10
"""Rollouts in a row from which nothing can be learned."""

Count = Annotated[int, Field(ge=1)]


class Online(Referenced):
    """A method that learns from its own samples.

    Args:
        rollout: What samples; see ``rollout.sampler``.
        reward: Rewards by name; see ``rewards``.
        reward_weights: Weights of the rewards, in their order; ``None`` for 1 each.
        num_completions: G, completions per prompt.
        num_iterations: Times that each completion is learned from.
        steps_per_rollout: Optimizer steps into which a rollout is cut.
        group_filter: What to do with groups whose rewards are all equal: keep, drop, or sample other prompts instead.
        max_resample_rounds: Further rounds of prompts at most, for ``resample``.
        truncated: What to do with completions cut at the limit: keep, leave out, or penalise.
        truncation_penalty: Taken off the reward of a cut completion, for ``penalise``.
        right_reward: Reward from which on a completion counts as right, for what is logged.
        parts: See ``Referenced``.
    """

    eats = Prompt
    scores_before: ClassVar[bool] = False
    """Whether ``known_before`` has anything to say."""

    def __init__(
        self,
        *,
        rollout: Any,
        reward: dict[str, Any],
        reward_weights: list[float] | None,
        num_completions: Count,
        num_iterations: Count,
        steps_per_rollout: Count,
        group_filter: Literal["keep", "drop", "resample"],
        max_resample_rounds: Annotated[int, Field(ge=0)],
        truncated: Literal["keep", "mask", "penalise"],
        truncation_penalty: Annotated[float, Field(ge=0)],
        right_reward: float,
        **parts,
    ):
        super().__init__(precompute_reference=False, **parts)
        self.rollout, self.num_completions = rollout, num_completions
        self.scorer = Scorer(reward, reward_weights)
        self.num_iterations, self.steps_per_rollout = num_iterations, steps_per_rollout
        self.group_filter, self.max_resample_rounds = group_filter, max_resample_rounds
        self.truncated, self.truncation_penalty = truncated, truncation_penalty
        self.right_reward = right_reward
        self.rollout_metrics: dict[str, float] = {}
        self.samples: list[Group] = []

    # --- what a method writes -----------------------------------------------------------------------------------------

    def advantages(self, groups: Sequence[Group]) -> list[list[float]]:
        """Advantages of the completions of all groups, over the whole rollout."""
        raise NotImplementedError(f"{type(self).__name__} has no advantages(groups)")

    def known_before(self, batch: MicroBatch) -> dict[str, Tensor]:
        """Values of tokens to compute before learning begins, each ``[N]``; none unless overridden."""
        return {}

    def complete_rows(self, rows: list[TokenRow]) -> list[TokenRow]:
        """The rows once ``known_before`` is known, for what is derived from it over the whole rollout."""
        return rows

    # --- the loader ---------------------------------------------------------------------------------------------------

    def experience(self, data: DataModule, num_steps: int) -> ExperienceLoader:
        """Optimizer steps made of what the policy samples."""
        settings = ExperienceSettings(
            plan=data.plan,
            steps_per_rollout=self.steps_per_rollout,
            num_iterations=self.num_iterations,
            packing=data.load.packing,
            pad_token_id=data.tokenizer.pad_token_id or 0,
        )
        ranks = {"rank": self.trainer.global_rank, "num_ranks": num_ranks()}
        return ExperienceLoader(self._prompts, self._roll_out, settings=settings, num_steps=num_steps, **ranks)

    def validation_step(self, step: Any, batch_index: int) -> None:
        """Nothing: held-out prompts have no completions to compute a loss on."""

    # --- a rollout ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> DataModule:
        """The data of this run."""
        return self.trainer.datamodule

    @property
    def temperature(self) -> float:
        """That of the sampling, at which the policy is scored too."""
        return self.rollout.draw["temperature"] or 1.0

    @property
    def max_completion_tokens(self) -> int:
        """The longest length that sampling allows."""
        return self.rollout.draw["max_completion_tokens"]

    def _prompts(self, window: int) -> tuple[list[TokenRow], float]:
        """The prompts of a rollout, and the epochs that are over once they are used."""
        size = self.data.plan.global_batch_size * self.steps_per_rollout
        step = next(table_steps(self.data.train, replace(self.data.plan, global_batch_size=size), 0, 1, window))
        return list(step.rows), step.epoch

    def _roll_out(self, number: int, next_prompts: Callable[[], Sequence[TokenRow]]) -> list[TokenRow]:
        clock = time.perf_counter()
        sampled, kept = self._gather_groups(number, next_prompts)
        advantages = self.advantages(kept)
        scored = time.perf_counter()
        limit = self.data.plan.max_tokens_per_micro_batch
        rows = [
            part
            for group, values in zip(kept, advantages, strict=True)
            for part in split(group.row({"advantages": values}, self._sampled_logps(group)), limit)
        ]
        if self.scores_before:
            rows = self.complete_rows(annotate(rows, self._known_before, self.data, self.device))
        self.samples = sampled
        timing = {"time/rollout": scored - clock, "time/scoring": time.perf_counter() - scored}
        self.rollout_metrics = rollout_metrics(sampled, self.right_reward) | timing
        return rows

    def _gather_groups(self, number: int, next_prompts: Callable[[], Sequence[TokenRow]]):
        """All groups that were sampled, and those to learn from."""
        for attempt in range(MAX_EMPTY_ROLLOUTS):
            sampled = self._sample(next_prompts(), (number, attempt, 0))
            kept, wanted = self._filter(sampled), len(sampled)
            for again in range(self.max_resample_rounds if self.group_filter == "resample" else 0):
                if len(kept) >= wanted:
                    break
                more = self._sample(next_prompts()[: wanted - len(kept)], (number, attempt, again + 1))
                sampled, kept = sampled + more, kept + self._filter(more)
            if kept:
                return sampled, kept
            log.warning("rollout %d: none of %d groups is left to learn from; sampling others", number, len(sampled))
        raise InputError(
            f"method.group_filter={self.group_filter}",
            f"in {MAX_EMPTY_ROLLOUTS} rollouts in a row all rewards of a prompt were equal, or all completions cut",
            "Raise method.num_completions or rollout.max_completion_tokens, take easier prompts, or type "
            "method.group_filter=keep",
        )

    def _filter(self, groups: Sequence[Group]) -> list[Group]:
        """What is learned from: left out are, where asked, cut completions and groups without spread."""
        if self.truncated == "mask":
            groups = [group.only([i for i, c in enumerate(group.completions) if c.finished]) for group in groups]
        groups = [group for group in groups if group.completions]
        return groups if self.group_filter == "keep" else [group for group in groups if group.spread > 0]

    def _sample(self, prompts: Sequence[TokenRow], key: tuple[int, ...]) -> list[Group]:
        """Complete and score prompts, each rank its share; every rank gets all groups, in order."""
        rank, ranks = self.trainer.global_rank, num_ranks()
        shares = everyone(self._sample_share(prompts[rank::ranks], key, range(rank, len(prompts), ranks)))
        return [shares[index % ranks][index // ranks] for index in range(len(prompts))]

    def _sample_share(self, prompts: Sequence[TokenRow], key: tuple[int, ...], places: Sequence[int]) -> list[Group]:
        tokenizer = self.data.tokenizer
        with self.spread.whole(self.policy):
            completions = self.rollout(
                self.policy,
                [row.tokens for row in prompts],
                num_completions=self.num_completions,
                stop_tokens=sorted(stop_tokens(tokenizer, choose_template(tokenizer, self.data.tokens.chat_template))),
                tokenizer=tokenizer,
                generator=[_generator(self.data.plan.seed, *key, place) for place in places],
            )
        groups = [
            Group(row, of, [tokenizer.decode(one.tokens, skip_special_tokens=True) for one in of])
            for row, of in zip(prompts, completions, strict=True)
        ]
        return self._score(groups)

    def _score(self, groups: list[Group]) -> list[Group]:
        """Give the completions their rewards."""
        texts = [text for group in groups for text in group.texts]
        records = [group.prompt.record for group in groups for _ in group.texts]
        columns = {name for record in records for name in record["columns"]}
        scores = self.scorer(
            texts,
            [record["prompt"] for record in records],
            {name: [record["columns"].get(name) for record in records] for name in sorted(columns)},
        )
        start = 0
        for group in groups:
            part = slice(start, start := start + len(group.texts))
            group.rewards = {name: values[part] for name, values in scores.by_name.items()}
            group.totals = list(scores.total[part])
            if self.truncated == "penalise":
                cut = [self.truncation_penalty * (not one.finished) for one in group.completions]
                group.totals = [total - off for total, off in zip(group.totals, cut, strict=True)]
        return groups

    def _sampled_logps(self, group: Group) -> dict[str, list[float]]:
        if not self.off_policy:
            return {}
        return {"old_logps": [value for completion in group.completions for value in completion.logps]}

    @property
    def off_policy(self) -> bool:
        """Whether a step may learn from completions of an older policy."""
        return self.num_iterations * self.steps_per_rollout > 1

    def _known_before(self, batch: MicroBatch) -> dict[str, Tensor]:
        return self.spread.forward(self.known_before, batch)

    def step_metrics(self) -> dict[str, float]:
        """What is logged once per rollout, with its first step."""
        metrics, self.rollout_metrics = self.rollout_metrics, {}
        return metrics


def _generator(*key: int) -> torch.Generator:
    """Randomness of one prompt of one rollout, whichever rank samples it."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
