"""Prompts completed and scored: every rank has its share of them drawn, scores it, and gets the groups of all."""

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from alignlab.distributed.comm import all_gather, num_ranks
from alignlab.rewards.tallies import Tally, together
from alignlab.rollout.groups import Group
from alignlab.rollout.weight_sync import holds_copy
from alignlab.types.rows import TokenRow

if TYPE_CHECKING:
    from alignlab.methods.online import Online


def sample_groups(
    method: "Online", prompts: Sequence[TokenRow], key: tuple[int, ...]
) -> tuple[list[Group], dict[str, Tally]]:
    """Complete and score prompts, each rank its share; every rank gets all groups, in order, and how rewards did.

    Args:
        method: Knows what samples, how often, and what rewards there are.
        prompts: The same on all ranks.
        key: Sets these draws apart from all others of the run: rollout, attempt, round, ….
    """
    rank, ranks = method.trainer.global_rank, num_ranks()
    places = range(rank, len(prompts), ranks)
    generators = [_generator(method.data.plan.seed, *key, place) for place in places]
    groups, tallies = _reward(method, _draw(method, prompts[rank::ranks], generators))
    if method.wants_greedy:
        best, more = _reward(method, _draw(method, prompts[rank::ranks], generators, greedy=True))
        tallies = together([tallies, more])
        for group, alone in zip(groups, best, strict=True):
            group.greedy = {name: value for name, (value,) in alone.rewards.items()}
    shares, tallies_of_ranks = zip(*all_gather((groups, tallies)), strict=True)
    ordered = [shares[index % ranks][index // ranks] for index in range(len(prompts))]
    return ordered, together(tallies_of_ranks)


def _generator(*key: int) -> torch.Generator:
    """Randomness of one prompt of one rollout, whichever rank samples it."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def _draw(
    method: "Online", prompts: Sequence[TokenRow], generators: list[torch.Generator], greedy: bool = False
) -> list[Group]:
    tokenizer = method.data.tokenizer
    with _weights_at_hand(method):
        completions = method.rollout(
            method.policy,
            [row.tokens for row in prompts],
            num_completions=1 if greedy else method.num_completions,
            stop_tokens=method.stop_tokens,
            tokenizer=tokenizer,
            generator=generators,
            greedy=greedy,
        )
    return [
        Group(row, of, [tokenizer.decode(one.tokens, skip_special_tokens=True) for one in of])
        for row, of in zip(prompts, completions, strict=True)
    ]


def _weights_at_hand(method: "Online") -> AbstractContextManager:
    """Whole on every rank, unless it is a copy elsewhere that samples."""
    return nullcontext() if holds_copy(method.rollout) else method.sharding.whole(method.policy)


def _reward(method: "Online", groups: list[Group]) -> tuple[list[Group], dict[str, Tally]]:
    """Give the completions their rewards, and say how these did."""
    if not groups:
        return [], {}
    records = [group.prompt.record for group in groups for _ in group.texts]
    columns = {name for record in records for name in record["columns"]}
    scores = method.scorer(
        [text for group in groups for text in group.texts],
        [record["prompt"] for record in records],
        {name: [record["columns"].get(name) for record in records] for name in sorted(columns)}
        | {"num_tokens": [len(one.tokens) for group in groups for one in group.completions]},
    )
    start, penalty = 0, method.truncation_penalty
    for group in groups:
        part = slice(start, start := start + len(group.texts))
        group.rewards = {name: list(values[part]) for name, values in scores.by_name.items()}
        group.failed = scores.failed[part]
        if method.truncated == "penalise":
            known = zip(group.completions, scores.total[part], strict=True)
            # Of what nobody has an opinion, this is none either: it would count as a reward of 0.
            penalties = (math.nan if math.isnan(total) else -penalty * (not one.finished) for one, total in known)
            group.rewards["truncation"] = list(penalties)
        cut = group.rewards.get("truncation", [0.0] * len(group.texts))
        group.totals = [total + off for total, off in zip(scores.total[part], cut, strict=True)]
    return groups, scores.tallies
