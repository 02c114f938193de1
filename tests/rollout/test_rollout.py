"""A rollout: completions side by side, and the rows that it becomes."""

import math

import pytest
import torch

from alignlab.rollout import collect
from alignlab.rollout.collect import gather_completions
from alignlab.rollout.completions import Completion, Completions
from alignlab.rollout.rollout import Rollout
from alignlab.types.rows import TokenRow


def make_rollout(lengths=((2, 1, 3),), rewards=((1.0, 0.0, 0.5),), finished=((True, False, True),), prompt=(7, 8)):
    """Prompts of two tokens; completion number n consists of tokens 10 + n, each of log-probability -0.1 (n + 1)."""
    flat = [
        (index, *one)
        for index, group in enumerate(zip(lengths, rewards, finished, strict=True))
        for one in zip(*group, strict=True)
    ]
    completions = [
        Completion([10 + n] * size, [-0.1 * (n + 1)] * size, done) for n, (_, size, _, done) in enumerate(flat)
    ]
    drawn = Completions.of(completions)
    total = torch.tensor([reward for _, _, reward, _ in flat], dtype=torch.float64)
    return Rollout(
        prompts=[
            TokenRow(list(prompt), [False] * len(prompt), [[len(prompt)]], f"row {i}") for i in range(len(lengths))
        ],
        prompt_index=torch.tensor([index for index, *_ in flat]),
        completions=drawn,
        columns={"reward": total},
        token_columns={"sampled_logps": drawn.logps.double()},
    )


TWO = {
    "lengths": ((2, 1, 3), (1, 1)),
    "rewards": ((1.0, 0.0, 0.5), (0.0, 2.0)),
    "finished": ((True, False, True), (True, True)),
}


def test_a_group_becomes_a_row():
    (row,) = make_rollout().rows(None)
    assert row.tokens.tolist() == [7, 8, 10, 10, 11, 12, 12, 12]
    assert row.supervised == [False] * 2 + [True] * 6
    assert row.groups == [[2, 2, 1, 3]] and row.origin == "row 0"
    assert row.columns["reward"].tolist() == [1.0, 0.0, 0.5]
    assert row.token_columns["sampled_logps"].tolist() == pytest.approx([-0.1, -0.1, -0.2, -0.3, -0.3, -0.3])


@pytest.mark.parametrize(
    ("limit", "groups"), [(None, [[2, 2, 1, 3]]), (5, [[2, 2, 1], [2, 3]]), (1, [[2, 2], [2, 1], [2, 3]])]
)
def test_a_long_group_becomes_several_rows(limit, groups):
    rows = make_rollout().rows(limit)
    assert [row.groups[0] for row in rows] == groups
    assert [reward for row in rows for reward in row.columns["reward"].tolist()] == [1.0, 0.0, 0.5]
    assert all(row.tokens[:2].tolist() == [7, 8] and len(row.supervised) == len(row.tokens) for row in rows)
    assert all(sum(row.supervised) == len(row.token_columns["sampled_logps"]) for row in rows)


def test_tokens_and_groups_know_where_they_belong():
    rollout = make_rollout(**TWO)
    assert rollout.sequence_ids.tolist() == [0, 0, 1, 2, 2, 2, 3, 4]
    assert rollout.group_ids.tolist() == [0, 0, 0, 1, 1]
    rows = rollout.with_columns(advantages=torch.arange(5.0)).rows(5)
    assert [row.columns["advantages"].tolist() for row in rows] == [[0.0, 1.0], [2.0], [3.0, 4.0]]
    rows = rollout.with_token_columns(values=torch.arange(8.0)).rows(5)
    assert [row.token_columns["values"].tolist() for row in rows] == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0]]


def test_cut_completions_can_be_left_out():
    rollout = make_rollout(**TWO)
    kept = rollout.keep(rollout.completions.finished)
    assert kept.completions.lengths.tolist() == [2, 3, 1, 1]
    assert kept.columns["reward"].tolist() == [1.0, 0.5, 0.0, 2.0]
    assert kept.completions.tokens.tolist() == [10, 10, 12, 12, 12, 13, 14]


def test_groups_count_without_gaps_where_one_is_left_out():
    rollout = make_rollout(**TWO)
    kept = rollout.keep(torch.tensor([False, False, False, True, True]))
    assert kept.group_ids.tolist() == [0, 0] and [row.origin for row in kept.rows(None)] == ["row 1"]


def test_rollouts_join():
    joined = make_rollout().concatenate(make_rollout(**TWO))
    assert joined.group_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [row.origin for row in joined.rows(None)] == ["row 0", "row 0", "row 1"]
    assert joined.columns["reward"].tolist() == [1.0, 0.0, 0.5, 1.0, 0.0, 0.5, 0.0, 2.0]


def test_plain_completions_come_back_as_they_were():
    plain = [Completion([1, 2], [-0.5, -0.25], True), Completion([], [], False), Completion([3], [-1.0], True)]
    assert Completions.of(plain).plain() == plain


def test_one_rank_has_all_that_there_is():
    drawn = Completions.of([Completion([1], [-0.5], True)])
    assert gather_completions(drawn, {}, torch.tensor([0]), 1, torch.device("cpu")) == (drawn, {})


def test_columns_keep_their_order_over_ranks(monkeypatch):
    """Several rewards are summed in their order, so that a sum does not depend on the number of ranks."""
    monkeypatch.setattr(collect, "num_ranks", lambda: 2)
    drawn = Completions.of([Completion([1, 2], [-0.5, -0.25], True), Completion([3], [-1.0], False)])
    columns = {name: torch.tensor([1.0, math.nan]).double() for name in ("reward/b", "reward/a", "reward")}
    found, shared = collect.gather_completions(drawn, columns, torch.tensor([1, 0]), 2, torch.device("cpu"))
    assert found.plain() == [Completion([3], [-1.0], False), Completion([1, 2], [-0.5, -0.25], True)]
    assert list(shared) == ["reward/b", "reward/a", "reward"]
    assert shared["reward/b"][1] == 1.0 and shared["reward/b"][0].isnan()
