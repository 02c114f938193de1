"""Group losses against slow loops, hand-worked numbers, and their limits."""

import math

import pytest
import torch

from alignlab.losses import group
from alignlab.losses.group import Groups, group_metrics, hardest, hardest_index

LOSSES = {
    "group_hinge": ({"margin": 0.7, "inverse_temperature": None}, lambda c, r, s: max(0.0, max(r) - c + 0.7)),
    "group_hinge_smooth": (
        {"margin": 0.7, "inverse_temperature": 2.0},
        lambda c, r, s: max(0.0, smooth(r, 2.0) - c + 0.7),
    ),
    "group_logistic": ({"inverse_temperature": None}, lambda c, r, s: softplus(max(r) - c)),
    "group_softmax": ({}, lambda c, r, s: softplus(math.log(sum(math.exp(x - c) for x in r)))),
    "all_pairs": ({"margin": 0.3}, lambda c, r, s: sum(softplus(x - c + 0.3) for x in r) / len(r)),
    "plackett_luce": ({}, lambda c, r, s: ranking([c, *r], s)),
}


def softplus(value):
    return math.log1p(math.exp(value))


def smooth(values, inverse_temperature):
    weights = [math.exp(inverse_temperature * value) for value in values]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def ranking(rewards, scores):
    """Choose the best of those left, again and again."""
    left = sorted(range(len(rewards)), key=lambda place: (-scores[place], place))
    total = 0.0
    while left:
        total -= rewards[left[0]] - math.log(sum(math.exp(rewards[place]) for place in left))
        left.pop(0)
    return total


def loss_of(name):
    settings, slow = LOSSES[name]
    function = getattr(group, name.removesuffix("_smooth"))
    return lambda groups: function(groups, **settings), slow


def make_groups(seed=0, sizes=(2, 5, 3, 2, 8), **changes):
    generator = torch.Generator().manual_seed(seed)
    group_ids = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    rewards = torch.randn(len(group_ids), dtype=torch.float64, generator=generator, requires_grad=True)
    return Groups(rewards, group_ids, **changes)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_loop_on_ragged_groups(name, seed):
    scores = torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(seed)).double()
    groups = make_groups(seed, scores=scores)
    fast, slow = loss_of(name)
    for number, found in enumerate(fast(groups).tolist()):
        chosen, *rejected = groups.rewards[groups.group_ids == number].tolist()
        assert found == pytest.approx(slow(chosen, rejected, scores[groups.group_ids == number].tolist()), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    groups = make_groups(4)
    assert torch.autograd.gradcheck(
        lambda rewards: loss_of(name)[0](Groups(rewards, groups.group_ids)), (groups.rewards,)
    )


def test_worked_by_hand():
    """Chosen 0.5 against 0.2 and 0.4 with margin 1: 0.4 - 0.5 + 1 = 0.9; the gradient reaches chosen and hardest."""
    rewards = torch.tensor([0.5, 0.2, 0.4], dtype=torch.float64, requires_grad=True)
    loss = group.group_hinge(Groups(rewards, torch.zeros(3, dtype=torch.long)), margin=1.0, inverse_temperature=None)
    assert loss.item() == pytest.approx(0.9)
    loss.sum().backward()
    assert rewards.grad.tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("inverse_temperature", [1e4, 1e9])
def test_a_sharp_maximum_is_the_exact_one(inverse_temperature):
    groups = make_groups(2)
    assert torch.allclose(hardest(groups, inverse_temperature), hardest(groups), rtol=1e-12)
    exact, sharp = (
        torch.autograd.grad(group.group_hinge(groups, margin=9.0, inverse_temperature=value).sum(), groups.rewards)[0]
        for value in (None, inverse_temperature)
    )
    assert torch.allclose(exact, sharp, atol=1e-9)


def test_a_blunt_maximum_is_the_mean():
    groups = make_groups(2)
    rewards, group_ids = groups.rejected
    means = torch.stack([rewards[group_ids == number].mean() for number in range(groups.num_groups)])
    assert torch.allclose(hardest(groups, 1e-9), means, rtol=1e-6)


@pytest.mark.parametrize("inverse_temperature", [None, 0.5, 5.0])
def test_one_rejected_is_the_pairwise_hinge(inverse_temperature):
    groups = make_groups(3, sizes=(2, 2, 2))
    chosen, rejected = groups.rewards.view(3, 2).T
    pairwise = torch.relu(1.5 - (chosen - rejected))
    assert torch.allclose(
        group.group_hinge(groups, margin=1.5, inverse_temperature=inverse_temperature), pairwise, rtol=1e-12
    )


@pytest.mark.parametrize("name", ["group_logistic", "group_softmax", "plackett_luce"])
def test_one_rejected_is_the_logistic_loss(name):
    groups = make_groups(3, sizes=(2, 2, 2))
    chosen, rejected = groups.rewards.view(3, 2).T
    assert torch.allclose(loss_of(name)[0](groups), torch.log1p(torch.exp(rejected - chosen)), rtol=1e-12)


def test_of_equally_hard_ones_the_first():
    rewards = torch.tensor([0.0, 2.0, 2.0, 1.0], requires_grad=True)
    groups = Groups(rewards, torch.zeros(4, dtype=torch.long))
    assert hardest_index(groups).tolist() == [0]
    group.group_hinge(groups, margin=1.0, inverse_temperature=None).sum().backward()
    assert rewards.grad.tolist() == [-1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", LOSSES)
def test_huge_rewards_stay_finite(name):
    rewards = torch.tensor([-1e4, 1e4, -1e4, 500.0], requires_grad=True)
    loss = loss_of(name)[0](Groups(rewards, torch.zeros(4, dtype=torch.long)))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert rewards.grad.isfinite().all()


def test_metrics_by_hand():
    """Groups (1 | 0.5, 0) and (0 | 2): leads over the hardest 0.5 and -2, over the mean 0.75 and -2."""
    groups = Groups(torch.tensor([1.0, 0.5, 0.0, 0.0, 2.0]), torch.tensor([0, 0, 0, 1, 1]))
    means = {
        name: (ratio.sum / ratio.weight).item()
        for name, ratio in group_metrics(
            groups, group.group_hinge(groups, margin=0.4, inverse_temperature=None)
        ).items()
    }
    assert means == pytest.approx(
        {
            "rewards/chosen": 0.5,
            "rewards/rejected": (0.25 + 2) / 2,
            "rewards/margins": (0.75 - 2) / 2,
            "rewards/margins_hardest": (0.5 - 2) / 2,
            "rewards/accuracies": 0.5,
            "group/active_fraction": 0.5,
            "group/hardest_place": 0.0,
            "group/num_rejected": 1.5,
        }
    )


def test_each_group_is_ranked_by_its_own_scores():
    scores = torch.tensor([1.0, 3.0, 2.0, math.nan, math.nan, math.nan, 5.0, 4.0])
    groups = make_groups(sizes=(3, 3, 2), scores=scores)
    alone = [
        group.plackett_luce(Groups(groups.rewards[part], torch.zeros(len(part), dtype=torch.long), own))
        for part, own in (
            (torch.arange(3), scores[:3]),
            (torch.arange(3, 6), None),
            (torch.arange(6, 8), scores[6:]),
        )
    ]
    assert torch.allclose(group.plackett_luce(groups), torch.cat(alone))


@pytest.mark.parametrize("name", ["group_hinge", "group_logistic", "group_softmax", "all_pairs", "plackett_luce"])
def test_rewards_that_are_no_numbers_give_such_a_loss(name):
    groups = make_groups(sizes=(3, 2))
    spoiled = Groups(groups.rewards * torch.tensor([1.0, math.nan, math.nan, 1.0, 1.0]), groups.group_ids, None)
    losses = loss_of(name)[0](spoiled)
    assert losses[0].isnan() and losses[1].isfinite()
    group_metrics(spoiled, losses)


def test_a_tie_is_not_ranked_right():
    """As before the first step, when policy and reference agree."""
    groups = Groups(torch.zeros(3), torch.zeros(3, dtype=torch.long))
    losses = group.group_hinge(groups, margin=0.0, inverse_temperature=None)
    found = group_metrics(groups, losses)
    assert found["rewards/accuracies"].sum == 0 and found["group/active_fraction"].sum == 0


def test_a_single_reward_that_is_no_number_shows_in_its_own_group_alone():
    rewards = torch.tensor([0.0, math.nan, 1.0, 0.0, 3.0, 2.0])
    found = hardest(Groups(rewards, torch.tensor([0, 0, 0, 1, 1, 1])))
    assert found[0].isnan() and found[1] == 3.0


def test_the_place_of_the_hardest_goes_from_zero_for_the_first_rejected_to_one_for_the_last():
    """The second of three, the last of two, the only one: 1/2, 1 and 0."""
    rewards = torch.tensor([0.0, 1.0, 3.0, 2.0, 0.0, 1.0, 2.0, 0.0, 5.0])
    groups = Groups(rewards, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2]))
    ratio = group_metrics(groups, torch.zeros(3))["group/hardest_place"]
    assert ratio.sum.item() == 1.5 and ratio.weight.item() == 3


@pytest.mark.parametrize(("length_normalised", "expected"), [(False, [1.0, -2.0]), (True, [0.5, -0.5])])
def test_rewards_of_completions_by_hand(length_normalised, expected):
    """β = 1/2, log-ratios 2 and -4 nats, completions of 2 and 4 tokens."""
    logps, reference, tokens = torch.tensor([-3.0, -9.0]), torch.tensor([-5.0, -5.0]), torch.tensor([2.0, 4.0])
    found = group.group_rewards(logps, reference, tokens, beta=0.5, length_normalised=length_normalised)
    assert found.tolist() == expected
