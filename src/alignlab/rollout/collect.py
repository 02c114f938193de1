"""Complete prompts and reward the completions: each rank its share, after which every rank has all of them."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from alignlab.data.datamodule import DataModule
from alignlab.distributed.comm import all_gather, num_ranks, rank, sum_over_ranks
from alignlab.rewards.counts import RewardCounts, merge_counts
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.completions import Completions
from alignlab.rollout.learner import Learner
from alignlab.rollout.rollout import Rollout
from alignlab.rollout.sampler.base import Sampler
from alignlab.rollout.settings import RolloutSettings
from alignlab.types.rows import TokenRow

Columns = dict[str, Tensor]


def collect(
    settings: RolloutSettings,
    sampler: Sampler,
    scorer: Scorer,
    learner: Learner,
    data: DataModule,
    stop_tokens: Sequence[int],
    prompts: Sequence[TokenRow],
    key: tuple[int, ...],
) -> tuple[Rollout, dict[str, RewardCounts]]:
    """Complete prompts and reward the completions.

    Args:
        settings: How many completions, and what becomes of cut ones.
        sampler: Draws them.
        scorer: Rewards them.
        learner: Holds the policy.
        data: Gives tokenizer and seed.
        stop_tokens: Tokens that end a completion.
        prompts: P rows, the same on all ranks.
        key: Sets these draws apart from all others of the run: rollout, attempt, round, ….

    Returns:
        All completions with their rewards, and how the rewards did; the same on all ranks.
    """
    own = range(rank(), len(prompts), num_ranks())
    share, size = [prompts[index] for index in own], settings.num_completions
    generators = [_generator(data.plan.seed, *key, index) for index in own]

    def draw(num_completions: int, greedy: bool) -> Completions:
        whole = learner.sharding.whole(learner.policy) if sampler.needs_whole_policy else nullcontext()
        with whole:
            return sampler(
                learner.policy,
                [row.tokens for row in share],
                num_completions=num_completions,
                stop_tokens=stop_tokens,
                tokenizer=data.tokenizer,
                generator=generators,
                greedy=greedy,
            )

    drawn = draw(size, greedy=False)
    columns, counts = reward(settings, scorer, data.tokenizer, share, drawn)
    if learner.needs_greedy:
        best, more = reward(settings, scorer, data.tokenizer, share, draw(1, greedy=True))
        by_name = {name: values for name, values in best.items() if name.startswith("reward/")}
        columns |= {f"greedy/{n.removeprefix('reward/')}": v.repeat_interleave(size) for n, v in by_name.items()}
        counts = merge_counts([counts, more])
    positions = torch.tensor([index * size + number for index in own for number in range(size)], dtype=torch.long)
    drawn, columns = share_with_all(drawn, columns, positions, len(prompts) * size, learner.device)
    rollout = Rollout(
        prompts=list(prompts),
        prompt_index=torch.arange(len(prompts)).repeat_interleave(size),
        completions=drawn,
        columns=columns,
        token_columns={"sampled_logps": drawn.logps.double()},
    )
    return rollout, merge_counts(all_gather(counts))


def _generator(*key: int) -> torch.Generator:
    """Randomness of one prompt of one rollout, whichever rank samples it."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def reward(
    settings: RolloutSettings, scorer: Scorer, tokenizer: Any, prompts: Sequence[TokenRow], drawn: Completions
) -> tuple[Columns, dict[str, RewardCounts]]:
    """Reward completions.

    Args:
        settings: What becomes of cut completions.
        scorer: Asks the rewards.
        tokenizer: Decodes completions.
        prompts: P rows.
        drawn: As many completions of each prompt.

    Returns:
        ``reward``, ``reward/NAME`` and ``num_failed_rewards``, each ``[S]`` in float64, and how each reward did.
    """
    names = [*scorer.rewards, *(["truncation"] if settings.truncated == "penalise" else [])]
    if not prompts:  # a rank may have none
        none = torch.zeros(0, dtype=torch.float64)
        return {"reward": none, "num_failed_rewards": none, **{f"reward/{name}": none for name in names}}, {}
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in drawn.token_lists()]
    records = [row.record for row in prompts for _ in range(len(texts) // len(prompts))]
    extra = sorted({name for record in records for name in record["columns"]})
    given = {name: [record["columns"].get(name) for record in records] for name in extra}
    scores = scorer(texts, [record["prompt"] for record in records], given | {"num_tokens": drawn.lengths.tolist()})
    columns = {f"reward/{name}": _column(values) for name, values in scores.by_name.items()}
    total = _column(scores.total)
    if settings.truncated == "penalise":
        # Where nobody has an opinion there is no penalty either: it would count as a reward of 0.
        penalty = torch.where(drawn.finished, 0.0, -settings.truncation_penalty).double()
        columns["reward/truncation"] = penalty.masked_fill(total.isnan(), math.nan)
        total = total + columns["reward/truncation"]
    return columns | {"reward": total, "num_failed_rewards": _column(scores.failed)}, scores.counts


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def share_with_all(
    drawn: Completions, columns: Columns, positions: Tensor, size: int, device: torch.device
) -> tuple[Completions, Columns]:
    """The completions of all ranks in their order, on every rank; each gives its own, and zeros elsewhere are added.

    Args:
        drawn: Of this rank.
        columns: Of this rank, the same names on all ranks. Each ``[S of this rank]``.
        positions: Index of each completion of this rank among those of all ranks. Shape ``[S of this rank]``.
        size: Completions of all ranks.
        device: On which ranks talk to each other.
    """
    if num_ranks() == 1:
        return drawn, columns
    names = sorted(columns)
    lengths, finished = (
        _gathered(drawn.lengths, positions, size, device),
        _gathered(drawn.finished, positions, size, device),
    )
    starts = lengths.cumsum(0) - lengths
    own = drawn.lengths
    within = torch.arange(int(own.sum())) - (own.cumsum(0) - own).repeat_interleave(own)
    at = starts[positions].repeat_interleave(own) + within
    tokens, logps = (_gathered(values, at, int(lengths.sum()), device) for values in (drawn.tokens, drawn.logps))
    shared = {name: _gathered(columns[name], positions, size, device) for name in names}
    return Completions(tokens, logps, lengths, finished.bool()), shared


def _gathered(values: Tensor, positions: Tensor, size: int, device: torch.device) -> Tensor:
    """The values of all ranks, each at its position. Shape ``[size]``."""
    values = values.long() if values.dtype == torch.bool else values
    table = torch.zeros(size, dtype=values.dtype).index_copy(0, positions, values)
    return sum_over_ranks(table.to(device)).cpu()
