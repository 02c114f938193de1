"""What methods that sample know of a rollout before they learn from it."""

import dataclasses
import functools
import math
import re
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from alignlab.errors import InputError, RunError
from alignlab.rewards.scorer import Scorer
from alignlab.rollout.collect import reward
from alignlab.rollout.completions import Completion, Completions
from tests.commands import QUIET, alignlab, summary
from tests.methods.prompts import SAMPLED, even, make_tokenizer
from tests.methods.toy import METHODS, fit, make_loader, make_method, make_policy, rows_for


def make(name, policy=make_policy, **changes):
    method = functools.partial(METHODS[name], **changes)
    return method(factories=make_method(name, lr=0.1, policy=policy).factories)


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
    exact = (precision, policy) == ("32-true", make_policy)
    assert ("old_logps" in method.score_names) == (not exact)


# --- rewards ----------------------------------------------------------------------------------------------------------


def rewarded(values, penalty=0.5, finished=(True, True, False)):
    """The columns of a group with these rewards."""
    scores = SimpleNamespace(total=values, by_name={"even": values}, failed=[0] * 3, counts={})
    prompt = SimpleNamespace(record={"prompt": "", "columns": {}})
    drawn = Completions.of([Completion([1], [-1.0], one) for one in finished])
    with_penalty = {"with_special_tokens": [], "truncation_penalty": penalty}
    return reward(Asked(scores), make_tokenizer(), [prompt], [len(drawn)], drawn, **with_penalty)[0]


class Asked:
    """A scorer that has its scores already."""

    rewards: ClassVar = {"even": None}

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, completions, prompts, columns, other_texts):
        return self.scores


def test_a_penalty_is_a_reward_of_its_own():
    columns = rewarded([1.0, 0.0, 1.0])
    assert columns["reward/truncation"].tolist() == [0.0, 0.0, -0.5]
    assert columns["reward"].tolist() == [1.0, 0.0, 0.5]


def test_a_completion_without_an_opinion_has_no_penalty_either():
    columns = rewarded([math.nan, 0.0, 1.0])
    assert columns["reward/truncation"][0].isnan() and columns["reward"][0].isnan()
    assert "reward/truncation" not in rewarded([math.nan, 0.0, 1.0], penalty=None)


def test_nobody_is_asked_about_nothing():
    """A rank may have no prompt to sample."""
    with_penalty = {"with_special_tokens": [], "truncation_penalty": 0.5}
    columns, counts = reward(Asked(None), None, [], [], Completions.of([]), **with_penalty)
    assert {name: len(values) for name, values in columns.items()} == dict.fromkeys(
        ["reward", "num_failed_rewards", "reward/even", "reward/truncation"], 0
    )
    assert counts == {}


def test_a_reward_may_get_special_tokens():
    """The end of the text is one; the other reward gets the text without it, as by default."""
    seen = {}

    def see(name, completions, prompts, **columns):
        seen[name] = completions
        return [1.0] * len(completions)

    rewards = {name: functools.partial(see, name) for name in ("plain", "whole")}
    special = {"with_special_tokens": ["whole"], "truncation_penalty": None}
    prompt = SimpleNamespace(record={"prompt": "", "columns": {}})
    drawn = Completions.of([Completion([5, 63], [-1.0, -1.0], True)])
    reward(Scorer(rewards, None, SAMPLED["reward_limits"]), make_tokenizer(), [prompt], [1], drawn, **special)
    assert seen == {"plain": ["5"], "whole": ["5 63"]}


def test_special_tokens_for_no_reward_are_refused():
    with pytest.raises(InputError, match=r"there is no reward 'evn'. Did you mean 'even'"):
        make("rloo", reward_special_tokens=["evn"])


# --- rewards that fail -----------------------------------------------------------------------------------------------


def raises(completions, prompts, **columns):
    raise OSError("nobody there")


def silent(completions, prompts, **columns):
    return [None] * len(completions)


for broken in (raises, silent):
    broken.own_process = False


@pytest.mark.parametrize("default", [None, 0.0])
@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ({"bad": raises}, "bad failed (at first: OSError: nobody there"),
        ({"bad": silent}, "bad had no opinion"),
        ({"even": even, "bad": raises}, "bad failed for all completions of 3 rollouts in a row"),
    ],
    ids=["raises", "silent", "one of two"],
)
def test_a_reward_that_never_works_ends_the_run(rewards, said, default):
    limits = dataclasses.replace(SAMPLED["reward_limits"], default=default)
    method = make("rloo", reward=rewards, reward_limits=limits, num_iterations=1)
    with pytest.raises(RunError, match=re.escape(said)):
        fit(method, make_loader(rows_for("rloo"), 8, num_steps=9))
    assert method.progress.step == (2 if "even" in rewards else 0)


def test_a_rollout_without_any_score_is_sampled_again():
    """Two failed rollouts, then one that is learned from: one step, three windows of prompts."""
    calls = []

    def late(completions, prompts, **columns):
        calls.append(prompts[0][0]["content"])
        return raises(completions, prompts) if len(calls) < 3 else even(completions, prompts)

    method = make("rloo", reward={"late": late}, num_iterations=1)
    _, steps = fit(method, make_loader(rows_for("rloo"), 8, num_steps=1))
    assert len(calls) == len(set(calls)) == 3
    assert steps[0]["reward/failed"] == 0.0


def test_on_the_command_line_it_is_one_paragraph_and_exit_code_1(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def score(completions):\n    raise OSError('nobody there')\n")
    words = ["method=grpo", "method/reward=python", f"method.reward.python.path={tmp_path}/mine.py:score", *SMALL]
    limits = ["method.reward_limits.max_failed_rollouts=2", "optimizer.weight_decay=0.1"]
    assert alignlab("train", *words, *limits, f"run_dir={tmp_path / 'run'}") == 1
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Failed.")]
    assert "no reward scored any completion of 2 rollouts in a row; python failed (at first: OSError" in told
    assert summary(tmp_path / "run")["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()


SMALL = [
    *QUIET, "trainer.max_steps=2", "data.source.num_train=40", "data.source.num_validation=4",
    "rollout.max_completion_tokens=8", "method.num_completions=2", "data.global_batch_size=2",
]  # fmt: skip
