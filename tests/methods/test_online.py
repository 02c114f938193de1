"""What methods that sample know of a rollout before they learn from it."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch

from alignlab.methods import groups
from alignlab.rollout.experience import Group
from alignlab.rollout.ledger import Completion
from tests.methods.toy import METHODS, fit, make_loader, make_method, make_policy, rows_for


def make(name, policy=make_policy, **changes):
    method = functools.partial(METHODS[name], **changes)
    return method(parts=make_method(name, lr=0.1, policy=policy).parts)


def in_bfloat16():
    return make_policy().to(torch.bfloat16)


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
@pytest.mark.parametrize(
    ("precision", "policy"),
    [("bf16-mixed", make_policy), ("32-true", in_bfloat16), ("32-true", make_policy)],
    ids=["mixed", "narrow", "float32"],
)
def test_the_policy_before_learning_is_the_one_in_training(name, precision, policy):
    """Before the first update no ratio is beyond rounding, though the samples' probabilities may be in 16 bits."""
    method = make(name, policy, steps_per_rollout=2)
    _, steps = fit(method, make_loader(rows_for(name), 8, num_steps=2), weights=False, precision=precision)
    assert steps[0]["train/ratio"] == pytest.approx(1, abs=1e-6)
    assert steps[0]["train/approx_kl"] == pytest.approx(0, abs=1e-9)
    assert method.exact == ((precision, policy) == ("32-true", make_policy))


def test_values_before_learning_are_without_dropout():
    """Two looks at the same rollout agree, and the critic trains on with dropout."""
    dropping = functools.partial(make_policy, dropout=0.5)
    method, seen = make("ppo_separate", dropping), []
    known_before = method.known_before

    def look_twice(batch):
        seen.extend(known_before(batch)["values"] for _ in range(2))
        return known_before(batch)

    method.known_before = look_twice
    torch.manual_seed(0)
    fit(method, make_loader(rows_for("ppo_separate"), 8, num_steps=4), weights=False)
    assert any(values.any() for values in seen), "a critic that expects nothing would prove nothing"
    assert all(torch.equal(*seen[start : start + 2]) for start in range(0, len(seen), 2))
    assert method.critic.trunk.training


# --- rewards ----------------------------------------------------------------------------------------------------------


def rewarded(values, truncated="penalise", finished=(True, True, False)):
    """A group with these rewards, as the method hands it on."""
    method = SimpleNamespace(
        truncated=truncated,
        truncation_penalty=0.5,
        scorer=lambda *texts_prompts_columns: SimpleNamespace(total=values, by_name={"even": values}, failed=[0] * 3),
    )
    prompt = SimpleNamespace(record={"prompt": "", "columns": {}})
    completions = [Completion([1], [-1.0], one) for one in finished]
    (group,) = groups._reward(method, [Group(prompt, completions, ["", "", ""])])
    return group


def test_a_penalty_is_a_reward_of_its_own():
    group = rewarded([1.0, 0.0, 1.0])
    assert group.rewards["truncation"] == [0.0, 0.0, -0.5]
    assert group.totals == [1.0, 0.0, 0.5]


def test_a_completion_without_an_opinion_has_no_penalty_either():
    group = rewarded([math.nan, 0.0, 1.0])
    assert math.isnan(group.rewards["truncation"][0]) and math.isnan(group.totals[0])
    assert rewarded([math.nan, 0.0, 1.0], "keep").rewards.keys() == {"even"}


def test_nobody_is_asked_about_nothing():
    """A rank may have no prompt to sample."""
    assert groups._reward(SimpleNamespace(scorer=None), []) == []
