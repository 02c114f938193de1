"""Advantages against golden values, slow loops on ragged groups and hand-worked numbers."""

import statistics

import pytest
import torch

from alignlab.errors import InputError
from alignlab.losses.advantages import advantages, estimate, flat_groups, group_metrics, weighted_sum
from alignlab.losses.kl import kl_values, penalise_rewards
from tests.losses.golden import cases, flatten, golden, inputs

ALL = cases("advantages")


@pytest.mark.parametrize(
    "case", [case for case in ALL if case["inputs"].startswith("rewards")], ids=lambda case: case["id"]
)
def test_golden_values(case):
    """Computed there in float32."""
    given, config = golden()["inputs"][case["inputs"]], case["config"]
    columns = [[torch.nan if x is None else x for x in given[name]] for name in ("reward_a", "reward_b")]
    rewards = torch.tensor(columns, dtype=torch.float64).T
    found = advantages(
        rewards,
        torch.tensor(config["reward_weights"]),
        torch.arange(len(rewards)) // given["group_size"],
        aggregation=config["multi_objective_aggregation"],
        estimator="grpo",
        scale=config["scale_rewards"],
    )
    assert found.tolist() == pytest.approx(case["expected"]["advantages"], rel=case["tol"], abs=case["tol"])


@pytest.mark.parametrize("case", [case for case in ALL if case["id"].startswith("rloo")], ids=lambda case: case["id"])
def test_golden_values_of_rloo(case):
    given, config = inputs(case), case["config"]
    mask = given["completion_mask"]
    (old, sequence_ids), (reference, _) = (flatten(given[f"{name}_per_token_logps"], mask) for name in ("old", "ref"))
    rewards = torch.tensor(config["rewards"], dtype=torch.float64)
    rewards = penalise_rewards(rewards, kl_values(old, reference, "k1"), sequence_ids, kl_coef=config["beta"])
    scale = "whiten" if config["normalize_advantages"] else "none"
    found = estimate(rewards, torch.arange(6) // 3, estimator="rloo", scale=scale)
    assert found.tolist() == pytest.approx(case["expected"]["advantages"], rel=case["tol"], abs=case["tol"])


def ragged(seed, missing=False):
    """Groups of 4, 1, 3, 2 and 6, one of them without spread; rewards that tie."""
    sizes = torch.tensor([4, 1, 3, 2, 6])
    generator = torch.Generator().manual_seed(seed)
    group_ids = torch.repeat_interleave(torch.arange(5), sizes)
    rewards, greedy = torch.randint(0, 4, (2, 16), generator=generator).double() / 2
    rewards[group_ids == 3] = 0.5
    if missing:
        rewards[torch.tensor([1, 4, 9, 10])] = torch.nan
        greedy[12] = torch.nan
    return rewards, group_ids, greedy


def slow_baseline(estimator, index, groups, batch, greedy):
    own = next(group for group in groups if index in group)
    others = [value for other, value in own.items() if other != index]
    return {
        "grpo": statistics.mean(own.values()),
        "rloo": statistics.mean(others) if others else own[index],
        "reinforce_plus_plus": statistics.mean(batch),
        "remax": greedy[index],
    }[estimator]


def slow_std(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def slow_advantages(rewards, group_ids, greedy, estimator, scale):
    known = [
        i for i, (r, g) in enumerate(zip(rewards, greedy, strict=True)) if r == r and (estimator != "remax" or g == g)
    ]
    groups = [{i: rewards[i] for i in known if group_ids[i] == group} for group in sorted(set(group_ids))]
    batch = [rewards[i] for i in known]
    centred = {i: rewards[i] - slow_baseline(estimator, i, groups, batch, greedy) for i in known}
    for group in groups:
        for i in group:
            if scale in ("group", "batch"):
                centred[i] /= slow_std(list(group.values()) if scale == "group" else batch) + 1e-4
    if scale == "whiten":
        middle, spread = statistics.mean(centred.values()), slow_std(list(centred.values()))
        centred = {i: (value - middle) / (spread + 1e-4) for i, value in centred.items()}
    return [centred.get(i, 0.0) for i in range(len(rewards))]


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce_plus_plus", "remax"])
@pytest.mark.parametrize("scale", ["group", "batch", "whiten", "none"])
@pytest.mark.parametrize("missing", [False, True])
def test_equals_a_slow_loop_on_ragged_groups(estimator, scale, missing):
    rewards, group_ids, greedy = ragged(1, missing)
    found = estimate(rewards, group_ids, estimator=estimator, scale=scale, greedy_rewards=greedy)
    slow = slow_advantages(rewards.tolist(), group_ids.tolist(), greedy.tolist(), estimator, scale)
    assert found.tolist() == pytest.approx(slow, rel=1e-12, abs=1e-12)


def test_leave_one_out_by_hand():
    """Rewards 1, 2 and 6: against 4, 3.5 and 1.5."""
    found = estimate(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3, dtype=torch.long), estimator="rloo", scale="none")
    assert found.tolist() == [-3.0, -1.5, 4.5]


def test_of_two_completions_each_is_the_baseline_of_the_other():
    rewards, group_ids = torch.tensor([1.0, 0.0, 5.0, 2.0]), torch.tensor([0, 0, 1, 1])
    found = estimate(rewards, group_ids, estimator="rloo", scale="none")
    assert found.tolist() == [1.0, -1.0, 3.0, -3.0]


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "pass_at_k"])
def test_a_group_without_spread_teaches_nothing(estimator):
    rewards, group_ids, _ = ragged(2)
    assert estimate(rewards, group_ids, estimator=estimator, scale="group", num_picked=2)[group_ids == 3].tolist() == [
        0.0,
        0.0,
    ]


def test_remax_asks_for_greedy_rewards():
    with pytest.raises(InputError, match="greedy"):
        estimate(torch.zeros(2), torch.zeros(2, dtype=torch.long), estimator="remax", scale="none")


def test_normalised_rewards_are_weighed_after_and_whitened():
    """A reward a thousand times larger than another counts no more than it; summed first it is all that counts."""
    group_ids = torch.zeros(4, dtype=torch.long)
    rewards = torch.tensor([[1000.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    settings = {"weights": torch.ones(2), "group_ids": group_ids, "estimator": "grpo", "scale": "group"}
    apart = advantages(rewards, aggregation="normalize_then_sum", **settings)
    assert apart[0].item() == pytest.approx(apart[2].item(), rel=1e-3)
    assert apart.mean().item() == pytest.approx(0, abs=1e-12)
    assert apart.std().item() == pytest.approx(1, rel=1e-3)
    together = advantages(rewards, aggregation="sum_then_normalize", **settings)
    assert together[0] > 0 > together[2]


def test_remax_of_several_rewards_estimated_apart():
    """Against greedy rewards (1, 0): differences (0, 2) and (-1, 0), summed to 2 and -1, then whitened."""
    found = advantages(
        torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64),
        torch.ones(2),
        torch.tensor([0, 0]),
        aggregation="normalize_then_sum",
        estimator="remax",
        scale="none",
        greedy_rewards=torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64),
    )
    std = 3 / 2**0.5
    assert found.tolist() == pytest.approx([1.5 / (std + 1e-4), -1.5 / (std + 1e-4)])


def test_missing_rewards_by_hand():
    """One missing counts 0; all missing are missing; a step in which all are missing has no advantage."""
    nan = torch.nan
    rewards = torch.tensor([[1.0, nan], [nan, nan], [2.0, 4.0]])
    assert weighted_sum(rewards, torch.tensor([1.0, 0.5])).nan_to_num(nan=-9).tolist() == [1.0, -9.0, 4.0]
    nothing = estimate(torch.full((3,), nan), torch.zeros(3, dtype=torch.long), estimator="grpo", scale="group")
    assert nothing.tolist() == [0.0, 0.0, 0.0]


def test_groups_without_spread_by_hand():
    """All right, all wrong, mixed, all unknown, and one whose only known reward is right."""
    nan = torch.nan
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0, nan, nan, nan, 1.0])
    group_ids = torch.arange(5).repeat_interleave(2)
    assert flat_groups(rewards, group_ids).tolist() == [True, True, False, True, True]
    found = group_metrics(rewards, group_ids, right_reward=1.0)
    assert {name: (ratio.sum / ratio.weight).item() for name, ratio in found.items()} == pytest.approx(
        {"zero_std_groups": 0.8, "zero_std_groups_right": 0.4, "zero_std_groups_wrong": 0.2}
    )
