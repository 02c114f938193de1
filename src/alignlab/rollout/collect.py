"""Sample completions and score them with the rewards. The ranks share the work, and all ranks get all results."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignlab.data.formats.messages import split_opened
from alignlab.distributed.comm import all_gather, num_ranks, rank, sum_over_ranks
from alignlab.rewards.counts import RewardCounts, merge_counts
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.completions import Completions
from alignlab.rollout.learner import Learner
from alignlab.rollout.rollout import Rollout
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.settings import RolloutSettings
from alignlab.types.rows import TokenRow

if TYPE_CHECKING:
    from alignlab.data.datamodule import DataModule

Columns = dict[str, Tensor]


def collect(
    settings: RolloutSettings,
    sampler: Sampler,
    scorer: Scorer,
    learner: Learner,
    data: "DataModule",
    prompts: Sequence[TokenRow],
    key: tuple[int, ...],
) -> tuple[Rollout, dict[str, RewardCounts]]:
    """Sample completions of prompts and score them with the rewards. All ranks must call this.

    Args:
        settings: Settings of the rollout.
        sampler: Samples completions.
        scorer: Calls the rewards.
        learner: The method, which has the policy.
        data: Data module, for tokenizer, stop tokens and seed.
        prompts: P rows, the same on all ranks.
        key: Key of the random numbers, unique in the run: rollout, attempt, round, ….

    Returns:
        All completions with their rewards, and the counts of each reward; the same on all ranks.
    """
    own = range(rank(), len(prompts), num_ranks())
    own_prompts, sizes = [prompts[index] for index in own], sampler.sizes(prompts, settings.num_completions)
    own_sizes = [sizes[index] for index in own]
    generators = [prompt_generator(data.plan.seed, *key, index) for index in own]
    draw = partial(draw_completions, sampler, learner, data, own_prompts, generators)
    drawn = draw(settings.num_completions)
    score = partial(reward, scorer, data.tokenizer, own_prompts, **settings.for_reward)
    columns, counts = score(own_sizes, drawn)
    if learner.needs_greedy:
        once = [1] * len(own_prompts)
        greedy, greedy_counts = score(once, draw(1, greedy=True))
        by_name = {name: values for name, values in greedy.items() if name.startswith("reward/")}
        columns |= {
            f"greedy/{n.removeprefix('reward/')}": v.repeat_interleave(torch.tensor(own_sizes))
            for n, v in by_name.items()
        }
        counts = merge_counts([counts, greedy_counts])
    starts = [0, *accumulate(sizes)]
    positions = torch.tensor([i for index in own for i in range(*starts[index : index + 2])], dtype=torch.long)
    drawn, columns = gather_completions(drawn, columns, positions, starts[-1], learner.device)
    rollout = Rollout(
        prompts=list(prompts),
        prompt_index=torch.arange(len(prompts)).repeat_interleave(torch.tensor(sizes)),
        completions=drawn,
        columns=columns,
        token_columns={"sampled_logps": drawn.logps.double()},
    )
    return rollout, merge_counts(all_gather(counts))


def draw_completions(
    sampler: Sampler,
    learner: Learner,
    data: "DataModule",
    prompts: Sequence[TokenRow],
    generators: Sequence[torch.Generator],
    num_completions: int,
    greedy: bool = False,
) -> Completions:
    """Sample completions of this rank's prompts with the policy. All ranks must call this.

    Args:
        sampler: Samples completions.
        learner: The method, which has the policy.
        data: Data module, for tokenizer and stop tokens.
        prompts: P rows.
        generators: Random generator of each prompt.
        num_completions: G, the number of completions per prompt.
        greedy: Whether to take the most probable tokens instead of sampling.

    Returns:
        G completions per prompt, in the order of the prompts.
    """
    gathered = learner.sharding.whole(learner.policy) if sampler.needs_whole_policy else nullcontext()
    with gathered:
        return sampler(
            learner.policy,
            prompts,
            num_completions=num_completions,
            stop_tokens=data.stop_tokens,
            tokenizer=data.tokenizer,
            generator=generators,
            greedy=greedy,
        )


def prompt_generator(*key: int | str) -> torch.Generator:
    """Random generator of a prompt, which depends on the key alone: not on the rank, nor on the global random state."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def reward(
    scorer: Scorer,
    tokenizer: Any,
    prompts: Sequence[TokenRow],
    sizes: Sequence[int],
    drawn: Completions,
    *,
    with_special_tokens: Sequence[str],
    truncation_penalty: float | None,
) -> tuple[Columns, dict[str, RewardCounts]]:
    """Score completions with the rewards.

    Args:
        scorer: Calls the rewards.
        tokenizer: Decodes completions.
        prompts: P rows.
        sizes: Number of completions of each prompt. Length P.
        drawn: S completions.
        with_special_tokens: Names of the rewards that get completions with their special tokens.
        truncation_penalty: Subtracted from the reward of a truncated completion; ``None`` for none.

    Returns:
        ``reward``, ``reward/NAME`` and ``num_failed_rewards``, each ``[S]`` in float64, and the counts of each reward.
    """
    names = [*scorer.rewards, *([] if truncation_penalty is None else ["truncation"])]
    if not prompts:  # more ranks than prompts
        empty = torch.zeros(0, dtype=torch.float64)
        return {"reward": empty, "num_failed_rewards": empty, **{f"reward/{name}": empty for name in names}}, {}
    records = [row.record for row, size in zip(prompts, sizes, strict=True) for _ in range(size)]
    asked, opened = zip(*(split_opened(record["prompt"]) for record in records), strict=True)

    def answers(skip_special_tokens: bool) -> list[str]:
        """A reward judges the whole answer, of which the prompt may hold the beginning."""
        tokens = zip(opened, drawn.token_lists(), strict=True)
        return [text + tokenizer.decode(own, skip_special_tokens=skip_special_tokens) for text, own in tokens]

    # Columns of these names would stand where the completions and prompts of the rollout belong.
    extra = sorted({name for record in records for name in record["columns"]} - {"completions", "prompts"})
    given = {name: [record["columns"].get(name) for record in records] for name in extra}
    given["num_tokens"] = drawn.lengths.tolist()
    other_texts = dict.fromkeys(with_special_tokens, answers(skip_special_tokens=False)) if with_special_tokens else {}
    scores = scorer(answers(skip_special_tokens=True), asked, given, other_texts)
    columns = {f"reward/{name}": _column(values) for name, values in scores.by_name.items()}
    total = _column(scores.total)
    if truncation_penalty is not None:
        # No penalty if all rewards are missing: the sum would then be a number, as if the rewards were 0.
        penalty = torch.where(drawn.finished, 0.0, -truncation_penalty).double()
        columns["reward/truncation"] = penalty.masked_fill(total.isnan(), math.nan)
        total = total + columns["reward/truncation"]
    return columns | {"reward": total, "num_failed_rewards": _column(scores.failed)}, scores.counts


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gather_completions(
    drawn: Completions, columns: Columns, positions: Tensor, size: int, device: torch.device
) -> tuple[Completions, Columns]:
    """Gather the completions of all ranks, in order, on every rank. Uses one all-reduce per tensor, not pickling.

    Args:
        drawn: Completions of this rank.
        columns: Columns of this rank, with the same names on all ranks. Each ``[S of this rank]``.
        positions: Index of each completion of this rank among those of all ranks. Shape ``[S of this rank]``.
        size: Number of completions of all ranks.
        device: Device of the collectives.
    """
    if num_ranks() == 1:
        return drawn, columns
    lengths, finished = (
        _gathered(drawn.lengths, positions, size, device),
        _gathered(drawn.finished, positions, size, device),
    )
    starts = lengths.cumsum(0) - lengths
    own = drawn.lengths
    within = torch.arange(int(own.sum())) - (own.cumsum(0) - own).repeat_interleave(own)
    token_positions = starts[positions].repeat_interleave(own) + within
    num_tokens = int(lengths.sum())
    tokens, logps = (_gathered(values, token_positions, num_tokens, device) for values in (drawn.tokens, drawn.logps))
    return Completions(tokens, logps, lengths, finished.bool()), gather_columns(columns, positions, size, device)


def gather_columns(columns: Columns, positions: Tensor, size: int, device: torch.device) -> Columns:
    """Gather columns of all ranks, in order, on every rank. Arguments as for ``gather_completions``."""
    if num_ranks() == 1:
        return columns
    # Every rank gathers in the same order, and keeps its own: rewards are then summed as on a single rank.
    shared = {name: _gathered(columns[name], positions, size, device) for name in sorted(columns)}
    return {name: shared[name] for name in columns}


def _gathered(values: Tensor, positions: Tensor, size: int, device: torch.device) -> Tensor:
    """The values of all ranks, each at its position. Shape ``[size]``."""
    values = values.long() if values.dtype == torch.bool else values
    table = torch.zeros(size, dtype=values.dtype).index_copy(0, positions, values)
    return sum_over_ranks(table.to(device)).cpu()
