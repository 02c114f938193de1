"""What GRPO learns from: tokens of high entropy, completions that the policy has not left behind, greedy baselines."""

import functools
import math

import pytest
import torch

from alignlab.data.batching.collate import collate, totals
from alignlab.rollout.completions import Completions
from alignlab.rollout.rollout import Rollout
from alignlab.types.rows import TokenRow
from tests.methods.toy import METHODS, fit, make_loader, make_method, make_policy, rows_for


def make(**changes):
    """GRPO over the tiny policy, used once per completion, with neither divergence nor entropy in its loss."""
    alone = {"kl_coef": 0.0, "entropy_coef": 0.0, "steps_per_rollout": 1}
    method = functools.partial(METHODS["grpo"], **{**alone, **changes})
    return method(factories=make_method("grpo", lr=0.1, packing=changes.pop("packing", True)).factories)


def rollout_of(*groups):
    """Prompts of two tokens with completions of two.

    Args:
        groups: Each the rewards of its completions, their token columns by name, and their columns by name.
    """
    rewards = torch.tensor([value for group, *_ in groups for value in group], dtype=torch.float64)
    size = len(rewards)
    tokens = torch.cat([torch.arange(3, 3 + 2 * len(group)) for group, *_ in groups])
    token_columns, columns = (
        {name: torch.tensor([v for group in groups for v in group[at][name]]).double() for name in groups[0][at]}
        for at in (1, 2)
    )
    return Rollout(
        prompts=[TokenRow([1, 2], [False, False], [[2]], "") for _ in groups],
        prompt_index=torch.tensor([index for index, (group, *_) in enumerate(groups) for _ in group]),
        completions=Completions(tokens, -torch.ones(2 * size), torch.full((size,), 2), torch.ones(size).bool()),
        columns={"reward": rewards, "reward/even": rewards, **columns},
        token_columns={"sampled_logps": -torch.ones(2 * size).double(), **token_columns},
    )


def advantages(method, *groups):
    return method.advantages(rollout_of(*groups)).columns["advantages"].tolist()


def test_remax_is_what_a_reward_has_above_the_greedy_completions():
    """1, 0.5 and nothing against 0.25; 0 and 1 against 1. A group without a greedy reward teaches nothing."""
    method = make(estimator="remax", scale="none")
    assert method.needs_greedy and not make().needs_greedy
    groups = [([1.0, 0.5, math.nan], 0.25), ([0.0, 1.0], 1.0), ([3.0], math.nan)]
    groups = [(rewards, {}, {"greedy/even": [best] * len(rewards)}) for rewards, best in groups]
    assert advantages(method, *groups) == [0.75, 0.25, 0.0, -1.0, 0.0, 0.0]


def test_remax_takes_the_divergence_off_the_completions_alone():
    """Two tokens of a divergence of -1 - -1.5 = 0.5 at 0.1 each: 0.1 off; 1 - 0.1 - 0.25."""
    method = make(estimator="remax", scale="none", reward_kl_coef=0.1)
    one = [1.0], {"reference_logps": [-1.5, -1.5]}, {"greedy/even": [0.25]}
    assert advantages(method, one) == pytest.approx([0.65])


def test_tokens_of_high_entropy_are_found_over_the_whole_rollout():
    """Of six tokens a third is to be kept: from the 4.33th of 0 … 5 on, which leaves the last two."""
    groups = ([1.0], {"entropies": [3.0, 0.0]}, {}), ([1.0, 0.0], {"entropies": [5.0, 1.0, 4.0, 2.0]}, {})
    found = make(top_entropy_quantile=1 / 3).advantages(rollout_of(*groups))
    assert found.token_columns["top_entropy"].tolist() == [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert "top_entropy" not in make().advantages(rollout_of(*groups)).token_columns


def rows_of(rewards, token_columns):
    """The rows of one group, with advantages 1 and -1."""
    return rollout_of((rewards, token_columns, {"advantages": [1.0, -1.0]})).rows(None)


def gradient_of(method, rows):
    """Gradients of the policy's embedding, and the output; advantages 1 and -1."""
    method.policy = make_policy()
    (term,) = method.compute_loss(collate(rows, packing=True)).terms
    term.sum.backward()
    return method.policy.get_input_embeddings().weight.grad, term


def test_only_decisive_tokens_are_learned_from_and_all_are_counted():
    top_entropy = [1.0, 0.0, 0.0, 1.0]
    learned = rows_of([1.0, 0.0], {"top_entropy": top_entropy})
    term = gradient_of(make(top_entropy_quantile=0.5), learned)[1]
    # On policy the ratio is 1, so the loss of a token is minus its advantage.
    assert term.sum.item() == pytest.approx(-1.0 + 1.0, abs=1e-6)
    assert term.unit == "supervised_tokens" and totals(learned).supervised_tokens == 4
    first = rows_of([1.0, 0.0], {"top_entropy": [1.0, 0.0, 0.0, 0.0]})
    gradient, term = gradient_of(make(top_entropy_quantile=0.5), first)
    assert term.sum.item() == pytest.approx(-1.0, abs=1e-6)
    assert gradient[[1, 2]].norm() > 0 and gradient[[3, 4, 5, 6]].norm() == 0  # nothing behind the prompt is asked


def test_bad_tokens_of_a_completion_that_was_left_behind_are_not_learned_from():
    """Sampled at log-probability 0, which the tiny policy is nowhere near; good tokens always count."""
    rows = rows_of([1.0, 0.0], {"sampled_logps": [0.0] * 4})
    sums = {limit: gradient_of(make(off_policy_threshold=limit), rows)[1] for limit in (None, 0.5, 100.0)}
    assert {limit: term.sum.item() for limit, term in sums.items()} == pytest.approx(
        {None: 0.0, 0.5: -2.0, 100.0: 0.0}, abs=1e-6
    )
    assert all(len(term.losses) == 4 for term in sums.values())


@pytest.mark.parametrize("changes", [{"top_entropy_quantile": 0.3}, {"off_policy_threshold": 0.01}])
def test_masks_do_not_depend_on_how_a_step_is_cut(changes):
    rows = rows_for("grpo")
    whole, _ = fit(make(num_iterations=2, **changes), make_loader(rows, 8, num_steps=4))
    cut, _ = fit(make(num_iterations=2, **changes), make_loader(rows, 2, num_steps=4))
    plain, _ = fit(make(num_iterations=2), make_loader(rows, 8, num_steps=4))
    assert (whole - cut).norm() < 1e-5 * whole.norm()
    assert not torch.equal(whole, plain)


def test_a_greedy_completion_is_rewarded_for_every_prompt_and_changes_no_draw():
    """Its rewards are those of greedy decoding, the same for all completions of a prompt."""
    rows = rows_for("grpo")
    found = {}
    for estimator in ("remax", "grpo"):
        method = make(estimator=estimator, scale="none")
        history, estimate = [], method.advantages
        method.advantages = lambda rollout, history=history, estimate=estimate: (
            history.append(rollout) or estimate(rollout)
        )
        fit(method, make_loader(rows, 8, num_steps=1))
        found[estimator] = history[0]
    greedy = found["remax"].columns["greedy/even"]
    assert torch.equal(found["remax"].columns["reward"], found["grpo"].columns["reward"])
    assert all(len(set(greedy[found["remax"].group_ids == group].nan_to_num(9).tolist())) == 1 for group in range(8))
    assert len(set(greedy.nan_to_num(9).tolist())) > 1 and "greedy/even" not in found["grpo"].columns
