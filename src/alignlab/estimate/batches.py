"""The micro-batches of a run, from its plan: the largest one, and sizes of a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from alignlab.data.batching.collate import collate, count_targets
from alignlab.data.batching.plan import plan_epoch, plan_step
from alignlab.data.datamodule import DataModule
from alignlab.data.settings import PlanSettings
from alignlab.types.batch import MicroBatch
from alignlab.types.rows import TokenRow

STEPS_TO_PLAN = 200
"""Optimizer steps in which the largest micro-batch is searched."""

ROWS_TO_COUNT = 200
"""Rows from which supervised tokens and contexts are counted."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a rank samples at once.

    Args:
        rows: Completions.
        prompts: Prompts of these.
        prompt_tokens: Tokens of the longest prompt.
        completion_tokens: Most tokens of a completion.
        completions: Completions of a rollout over all ranks.
        steps: Optimizer steps that are made of a rollout.
    """

    rows: int
    prompts: int
    prompt_tokens: int
    completion_tokens: int
    completions: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Sizes of the steps of a run.

    Args:
        largest: The micro-batch with the most tokens.
        per_step: Micro-batches of a rank in a step.
        tokens: Mean tokens of a step over all ranks.
        supervised: Mean supervised tokens of a step over all ranks.
        context: Mean number of tokens that a token attends to.
        steps: Optimizer steps of the run.
        sampling: For methods that sample; ``None`` for others.
    """

    largest: MicroBatch
    per_step: int
    tokens: float
    supervised: float
    context: float
    steps: int
    sampling: Sampling | None


def plan_batches(config: Mapping[str, Any], data: DataModule, num_ranks: int, context: int | None) -> Batches:
    """Plan the micro-batches of a run.

    Completions that are sampled are taken to have ``rollout.max_completion_tokens``, and rows of a stream
    ``data.max_tokens_per_sequence``: their lengths are not known before.

    Args:
        config: Checked and resolved.
        data: Opened, with the number of steps of the run.
        num_ranks: Data-parallel ranks.
        context: Positions of the model; ``None`` for no limit.
    """
    plan = replace(data.plan, **{k: config["data"][k] for k in ("global_batch_size", "batch_size_per_device")})
    plan = replace(plan, max_tokens_per_micro_batch=config["data"]["max_tokens_per_micro_batch"])
    if config["rollout"] is not None:
        return _sampled(config, data, plan, num_ranks, context)
    rows = [_longest_row(data)] * plan.global_batch_size if data.train is None else data.train
    lengths = np.array([len(row.tokens) for row in rows]) if data.train is None else data.train.lengths
    steps = plan_epoch(lengths, replace(plan, order="as_is" if plan.order == "curriculum" else plan.order), epoch=0)
    steps = steps[: min(data.num_steps, STEPS_TO_PLAN)]
    planned = [plan_step(lengths[step], plan, num_ranks) for step in steps]
    sizes = [
        (int(sum(lengths[step[list(batch.rows)]])), step[list(batch.rows)])
        for step, ranks in zip(steps, planned, strict=True)
        for batches in ranks
        for batch in batches
    ]
    _, largest = max(sizes, key=lambda found: found[0])
    some = [rows[int(index)] for index in islice(np.concatenate(steps), ROWS_TO_COUNT)]
    tokens = float(np.mean([lengths[step].sum() for step in steps]))
    return Batches(
        largest=_collate([rows[int(index)] for index in largest], config, data),
        per_step=max(len(ranks[0]) for ranks in planned),
        tokens=tokens,
        supervised=tokens * sum(map(count_targets, some)) / sum(len(row.tokens) for row in some),
        context=_mean_context(some),
        steps=data.num_steps,
        sampling=None,
    )


def _sampled(
    config: Mapping[str, Any], data: DataModule, plan: PlanSettings, num_ranks: int, context: int | None
) -> Batches:
    """Batches of a method that samples, with the longest prompts of the first rollout and the longest completions."""
    method, rollout = config["method"], config["rollout"]
    prompts, _ = data.window(0, method["steps_per_rollout"])
    num_completions = method["num_completions"]
    rows = [row for prompt in prompts for row in _completed(prompt, num_completions, rollout, plan, context)]
    own_prompts = -(-len(prompts) // num_ranks)
    at_once = min(rollout.get("batch_size") or 0, own_prompts * num_completions)
    longest = max(len(prompt.tokens) for prompt in prompts)
    size = -(-len(rows) // method["steps_per_rollout"])
    ranks = plan_step([len(row.tokens) for row in rows[:size]], plan, num_ranks)
    batches = [[rows[index] for index in batch.rows] for batch in (batch for own in ranks for batch in own)]
    largest = max(batches, key=lambda batch: sum(len(row.tokens) for row in batch))
    return Batches(
        largest=_collate(largest, config, data),
        per_step=len(ranks[0]),
        tokens=sum(len(row.tokens) for row in rows) / method["steps_per_rollout"],
        supervised=sum(map(count_targets, rows)) / method["steps_per_rollout"],
        context=_mean_context(rows[:ROWS_TO_COUNT]),
        steps=data.num_steps,
        sampling=Sampling(
            rows=at_once,
            prompts=min(own_prompts, -(-at_once // num_completions)),
            prompt_tokens=longest,
            completion_tokens=_limit(longest, rollout, context),
            completions=len(prompts) * num_completions,
            steps=method["steps_per_rollout"] * method["num_iterations"],
        ),
    )


def _completed(
    prompt: TokenRow, num_completions: int, rollout: Mapping[str, Any], plan: PlanSettings, context: int | None
) -> list[TokenRow]:
    """Rows of a prompt with completions of the maximum length, split as ``Rollout.rows`` splits them."""
    length = _limit(len(prompt.tokens), rollout, context)
    limit = plan.max_tokens_per_micro_batch
    per_row = num_completions if limit is None else max(1, (limit - len(prompt.tokens)) // length)
    counts = [min(per_row, num_completions - start) for start in range(0, num_completions, per_row)]
    return [_row(len(prompt.tokens), [length] * count) for count in counts]


def _limit(num_prompt_tokens: int, rollout: Mapping[str, Any], context: int | None) -> int:
    left = rollout["max_completion_tokens"] if context is None else context - num_prompt_tokens
    return max(1, min(rollout["max_completion_tokens"], left))


def _longest_row(data: DataModule) -> TokenRow:
    return _row(0, [data.tokens.max_tokens_per_sequence])


def _row(num_prompt_tokens: int, completions: Sequence[int]) -> TokenRow:
    supervised = [False] * num_prompt_tokens + [True] * sum(completions)
    return TokenRow([0] * len(supervised), supervised, [[num_prompt_tokens, *completions]], origin="")


def _collate(rows: Sequence[TokenRow], config: Mapping[str, Any], data: DataModule) -> MicroBatch:
    bare = [replace(row, columns={}, token_columns={}) for row in rows]
    return collate(bare, packing=config["data"]["packing"], pad_token_id=data.tokenizer.pad_token_id or 0)


def _mean_context(rows: Sequence[TokenRow]) -> float:
    """Mean number of tokens that a token attends to: itself, those before it in its segment, and its prompt."""
    attended = tokens = 0
    for row in rows:
        for prompt, *completions in row.groups:
            attended += prompt * (prompt + 1) / 2 + sum(length * (prompt + (length + 1) / 2) for length in completions)
            tokens += prompt + sum(completions)
    return attended / tokens
