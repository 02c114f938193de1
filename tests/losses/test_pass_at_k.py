"""Pass@k advantages against all sets written out, and against the closed form for rewards of 0 and 1."""

import statistics
from itertools import combinations
from math import comb

import pytest
import torch

from alignlab.losses.advantages import estimate
from alignlab.losses.pass_at_k import pass_at_k, pass_rate


def slow(rewards, k):
    """Write out the sets of one group."""
    k = min(k, len(rewards))
    sets = list(combinations(range(len(rewards)), k))
    best = [max(rewards[i] for i in members) for members in sets]
    own = [
        statistics.mean(value for members, value in zip(sets, best, strict=True) if i in members)
        for i in range(len(rewards))
    ]
    return [value - statistics.mean(best) for value in own], statistics.pstdev(best)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("values", [(0, 1), (-1.5, 0, 0.25, 2, 7)])
def test_equals_all_sets_written_out(k, values):
    sizes, generator = [5, 1, 8, 3], torch.Generator().manual_seed(k)
    group_ids = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    rewards = torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), (17,), generator=generator)]
    advantages, deviation = pass_at_k(rewards, group_ids, k)
    for group in range(4):
        expected, spread = slow(rewards[group_ids == group].tolist(), k)
        assert advantages[group_ids == group].tolist() == pytest.approx(expected, abs=1e-12)
        assert deviation[group_ids == group].tolist() == pytest.approx([spread] * sizes[group], abs=1e-7)


def test_the_closed_form_for_right_and_wrong():
    """N = 8, 3 right, k = 4: mean 1 - C(5,4)/C(8,4) = 13/14; wrong ones are in 1 - C(4,3)/C(7,3) = 31/35 good sets."""
    rewards = torch.tensor([1, 0, 0, 1, 0, 0, 1, 0], dtype=torch.float64)
    mean, std = 1 - comb(5, 4) / comb(8, 4), (13 / 14 * 1 / 14) ** 0.5
    settings = {"estimator": "pass_at_k", "num_picked": 4}
    found = estimate(rewards, torch.zeros(8, dtype=torch.long), scale="group", **settings)
    expected = [(1 if right else 31 / 35) - mean for right in rewards]
    assert found.tolist() == pytest.approx([value / (std + 1e-4) for value in expected])
    plain = estimate(rewards, torch.zeros(8, dtype=torch.long), scale="none", **settings)
    assert plain.tolist() == pytest.approx(expected)


def test_sets_of_one_are_completions():
    rewards = torch.tensor([1.0, 2.0, 6.0, 3.0, 3.5], dtype=torch.float64)
    group_ids = torch.tensor([0, 0, 0, 1, 1])
    alone = estimate(rewards, group_ids, estimator="pass_at_k", scale="none", num_picked=1)
    assert torch.allclose(alone, estimate(rewards, group_ids, estimator="grpo", scale="none"))


def test_large_groups_stay_exact():
    rewards = torch.zeros(256, dtype=torch.float32)
    rewards[:3] = 1
    advantages, _ = pass_at_k(rewards, torch.zeros(256, dtype=torch.long), 64)
    expected = comb(253, 64) / comb(256, 64)
    assert advantages[0].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("size", "k"), [(1, 1), (5, 1), (5, 2), (6, 6), (7, 4)])
def test_the_pass_rate_is_the_share_of_sets_with_one_that_passes(size, k):
    found = pass_rate(torch.arange(size + 1), size, k)
    for passed in range(size + 1):
        sets = list(combinations([1] * passed + [0] * (size - passed), k))
        assert found[passed].item() == pytest.approx(sum(map(any, sets)) / len(sets), abs=1e-12)
