"""Groups, rows and the flat view of a rollout."""

import math

import pytest
import torch

from alignlab.rollout.groups import Group, Rollout, split
from alignlab.rollout.sampler.completion_buffer import Completion
from alignlab.types.rows import TokenRow


def make_group(lengths=(2, 1, 3), totals=(1.0, 0.0, 0.5), finished=(True, False, True), prompt=(7, 8)):
    completions = [
        Completion([10 + place] * length, [-0.1 * (place + 1)] * length, done)
        for place, (length, done) in enumerate(zip(lengths, finished, strict=True))
    ]
    row = TokenRow(list(prompt), [False] * len(prompt), [[len(prompt)]], "row", record={"prompt": [], "columns": {}})
    return Group(row, completions, [str(n) for n in lengths], {"right": list(totals)}, list(totals))


def test_a_group_becomes_a_tree():
    row = make_group().row(3)
    assert row.tokens == [7, 8, 10, 10, 11, 12, 12, 12]
    assert row.supervised == [False] * 2 + [True] * 6
    assert row.groups == [[2, 2, 1, 3]]
    assert row.columns == {"reward": [1.0, 0.0, 0.5], "group": [3, 3, 3], "reward/right": [1.0, 0.0, 0.5]}
    assert row.token_columns["sampled_logps"] == pytest.approx([-0.1, -0.1, -0.2, -0.3, -0.3, -0.3])


def test_spread_and_cut_completions():
    group = make_group()
    assert group.reward_range == 1.0
    assert make_group(totals=(0.5, 0.5, math.nan)).reward_range == 0.0
    kept = group.finished()
    assert [len(one.tokens) for one in kept.completions] == [2, 3]
    assert (kept.totals, kept.rewards, kept.texts) == ([1.0, 0.5], {"right": [1.0, 0.5]}, ["2", "3"])


@pytest.mark.parametrize(
    ("limit", "groups"), [(None, [[2, 2, 1, 3]]), (5, [[2, 2, 1], [2, 3]]), (1, [[2, 2], [2, 1], [2, 3]])]
)
def test_a_long_row_is_split_by_completions(limit, groups):
    parts = split(make_group().row(0), limit)
    assert [part.groups[0] for part in parts] == groups
    assert [reward for part in parts for reward in part.columns["reward"]] == [1.0, 0.0, 0.5]
    assert all(part.tokens[:2] == [7, 8] and len(part.supervised) == len(part.tokens) for part in parts)
    assert all(sum(part.supervised) == len(part.token_columns["sampled_logps"]) for part in parts)


def test_a_rollout_lies_flat_and_takes_columns():
    groups = [make_group(), make_group((1, 1), (0.0, 2.0), (True, True))]
    rows = [part for number, group in zip((0, 5), groups, strict=True) for part in split(group.row(number), 5)]
    rollout = Rollout(rows)
    assert rollout.lengths == [2, 1, 3, 1, 1]
    assert rollout.sequence_ids.tolist() == [0, 0, 1, 2, 2, 2, 3, 4]
    assert rollout.group_ids.tolist() == [0, 0, 0, 1, 1]
    assert rollout.columns["reward"].tolist() == [1.0, 0.0, 0.5, 0.0, 2.0]
    new = rollout.with_columns(advantages=torch.arange(5.0))
    assert [row.columns["advantages"] for row in new] == [[0.0, 1.0], [2.0], [3.0, 4.0]]
    new = rollout.with_token_columns(values=torch.arange(8.0))
    assert [row.token_columns["values"] for row in new] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0]]
