"""Rewards and pass rates of sampled completions of held-out prompts."""

import functools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from alignlab.callbacks import held_out_samples
from alignlab.callbacks.held_out_samples import HeldOutSamples
from alignlab.errors import InputError
from alignlab.rewards.given import GivenReward
from alignlab.rewards.scorer import Scorer
from alignlab.rollout import collect
from tests.commands import QUIET, alignlab, metrics, start, summary
from tests.methods.prompts import SAMPLED, even, make_sampler, make_tokenizer
from tests.methods.toy import make_policy, rows_for

NAN = math.nan
SETTINGS = {"num_prompts": 5, "num_completions": 3, "k": [1, 3], "pass_reward": 0.5, "sampler": make_sampler()}


# --- sampling ---------------------------------------------------------------------------------------------------------


def logged(ranks=1, monkeypatch=None, answers=None, rewarded=True, sets=None, **changes):
    """What a validation logs, with the prompts of the toy methods; of two ranks, whose columns meet, once per rank."""
    rows, found = rows_for("grpo")[:5], []
    for row, answer in zip(rows, answers or [], strict=False):
        row.record["columns"]["answer"] = answer

    def having(columns):
        return [row for row in rows if row.record["columns"].keys() >= {*columns}]

    data = SimpleNamespace(
        plan=SimpleNamespace(seed=3),
        stop_tokens=[63],
        tokenizer=make_tokenizer(),
        validation_prompts=lambda limit, columns: {None: having(columns)} if sets is None else sets(having(columns)),
    )
    rollout = SimpleNamespace(
        settings=SimpleNamespace(for_reward={"with_special_tokens": [], "truncation_penalty": None}),
        scorer=Scorer({"even": even}, None, SAMPLED["reward_limits"]),
    )
    method = SimpleNamespace(
        head="language_model",
        policy=make_policy(),
        sharding=SimpleNamespace(whole=lambda policy: nullcontext()),
        device=torch.device("cpu"),
        rollout=rollout if rewarded else None,
        log_dict=found.append,
    )
    trainer = SimpleNamespace(datamodule=data)
    if ranks == 1:
        HeldOutSamples(**{**SETTINGS, **changes}).on_validation_epoch_end(trainer, method)
        return {name: value for one in found for name, value in one.items()}
    table = {}

    def meet(columns, positions, size, device):
        for name, values in columns.items():
            table.setdefault(name, torch.full((size,), NAN).double())[positions] = values
        return table

    monkeypatch.setattr(held_out_samples, "gather_columns", meet)
    monkeypatch.setattr(held_out_samples, "num_ranks", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(held_out_samples, "rank", functools.partial(int, rank))
        HeldOutSamples(**{**SETTINGS, **changes}).on_validation_epoch_end(trainer, method)
    return found[-1]


def test_it_is_the_same_on_any_number_of_ranks_and_moves_no_random_state(monkeypatch):
    alone = logged()
    assert alone.keys() == {"val/reward", "val/pass@1", "val/mean@1", "val/pass@3", "val/mean@3"}
    assert 0 < alone["val/mean@1"] < alone["val/pass@3"] <= 1
    before = torch.get_rng_state()
    assert logged(2, monkeypatch) == alone
    assert torch.get_rng_state().equal(before)


def test_rewards_of_the_completions_of_the_data_are_not_those_of_samples():
    """Three rewards in a row, as many as samples of its prompt, would be logged as theirs."""
    data = SimpleNamespace(scorer=SimpleNamespace(rewards={"given": GivenReward(column="rewards")}))
    method = SimpleNamespace(head="language_model", rollout=data)
    HeldOutSamples(**SETTINGS | {"k": [], "pass_reward": None}).on_validation_epoch_end(None, method)
    with pytest.raises(InputError, match="no rewards of sampled completions"):
        HeldOutSamples(**SETTINGS).setup(None, method, "fit")


def test_each_validation_set_has_its_own_values():
    joint, found = logged(), logged(sets=lambda rows: {"a": rows[:2], "b": rows[2:]})
    assert found.items() >= joint.items() and len(found) == 3 * len(joint)
    for name in joint:
        a, b = (found[name.replace("val/", f"val/{one}/")] for one in ("a", "b"))
        assert joint[name] == pytest.approx((2 * a + 3 * b) / 5)


def test_sampling_has_its_own_settings():
    assert logged(sampler=make_sampler(temperature=0.0))["val/pass@1"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert logged(sampler=make_sampler(max_completion_tokens=2)) != logged()


def test_without_a_limit_a_right_answer_passes():
    """Of the first prompt the first token that is drawn is the answer, of the second nothing is; others have none."""
    sampler = make_sampler(temperature=0.0, max_completion_tokens=1, stop_strings=[])
    first = int(make_policy()(torch.tensor([rows_for("grpo")[0].tokens])).logits[0, -1].argmax())
    found = logged(sampler=sampler, answers=[str(first), "none of these"], pass_reward=None, k=[2])
    assert found["val/pass@2"] == found["val/mean@2"] == 0.5


def test_a_method_without_rewards_samples_prompts_with_an_answer():
    settings = {"pass_reward": None, "rewarded": False}
    assert logged(**settings) == {}
    assert logged(**settings, answers=["1"], k=[]) == {}
    assert logged(**settings, answers=["1"], k=[1]).keys() == {"val/pass@1", "val/mean@1"}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_more_than_there_are_cannot_be_asked_for():
    with pytest.raises(InputError, match=r"Type callbacks\.held_out_samples\.num_completions=4"):
        HeldOutSamples(**{**SETTINGS, "k": [1, 4]})


def test_pass_rates_need_answers_or_a_limit():
    with pytest.raises(InputError, match=r"no held-out row has a column 'answer'.*pass_reward=REWARD"):
        logged(pass_reward=None)


def test_a_method_without_rewards_has_no_limit():
    with pytest.raises(InputError, match="this method has no rewards"):
        HeldOutSamples(**SETTINGS).setup(None, SimpleNamespace(rollout=None), "fit")


# --- runs -------------------------------------------------------------------------------------------------------------

SMALL = [
    *(*QUIET, "trainer.max_steps=2", "trainer.val_check_interval=1", "data.source.num_train=40"),
    *("data.source.num_validation=4", "data.global_batch_size=4"),
]
ONLINE = ["method=grpo", "method.num_completions=2", "method.steps_per_rollout=1", "rollout.max_completion_tokens=32"]
SAMPLES = ["callbacks.held_out_samples.num_completions=2", "callbacks.held_out_samples.k=[1,2]"]


def test_training_does_not_notice(tmp_path):
    """Dropout draws from the random state of every step; a method without rewards has pass rates alone."""
    runs = {}
    for name, words in {"with": SAMPLES, "without": ["callbacks.held_out_samples=null"]}.items():
        words = [*words, "method=sft", "peft=lora", "peft.lora_dropout=0.3", f"run_dir={tmp_path / name}"]
        assert alignlab("train", *SMALL, *words) == 0
        runs[name] = [row["train/loss"] for row in metrics(tmp_path / name) if "train/loss" in row]
    assert runs["with"] == runs["without"]
    names = {name for name in summary(tmp_path / "with")["initial_metrics"] if "@" in name or "reward" in name}
    assert names == {"val/pass@1", "val/mean@1", "val/pass@2", "val/mean@2"}


@pytest.mark.slow
def test_two_processes_log_what_one_logs(tmp_path):
    found = []
    for number in (1, 2):
        run = tmp_path / str(number)
        words = [*SMALL, *ONLINE, *SAMPLES, "strategy=ddp", f"trainer.devices={number}", f"run_dir={run}"]
        process = start(*words)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        found.append({name: value for name, value in summary(run)["initial_metrics"].items() if name != "val/loss"})
    assert found[0] == found[1] and "val/reward" in found[0]


def test_the_generator_of_a_prompt_depends_on_its_key_alone():
    one, same, other = (collect.prompt_generator(3, "held out", index).initial_seed() for index in (0, 0, 1))
    assert one == same != other
