"""The sampler that methods call, over a server that speaks as vLLM does; its model is a table of log-probabilities."""

import sys

import pytest
import torch
from omegaconf import OmegaConf

from alignlab.cli.composition.compose import compose
from alignlab.config import compat, schema
from alignlab.errors import InputError
from alignlab.rollout.vllm.parity import Parity, ParityError
from alignlab.rollout.vllm.rollout import VLLMRollout
from tests.methods.prompts import as_rows
from tests.rollout.vllm.fake import Fake, serving
from tests.rollout.vllm.test_engine import Table

PROMPTS = [[0, 4], [1, 4], [2, 4]]


def settings(**changes):
    node = dict(OmegaConf.to_container(compose(["method=grpo", "rollout=vllm"]).rollout, resolve=True))
    del node["_target_"]
    return {**node, "max_completion_tokens": 6, "timeout_seconds": 5.0, **changes}


@pytest.fixture
def fake():
    return Fake(Table(0).table.log_softmax(-1).tolist())


@pytest.fixture
def rollout(fake, tmp_path):
    with serving(fake) as url:
        rollout = VLLMRollout(**settings(urls=[url], weights_dir=str(tmp_path)))
        rollout.open("nowhere", prompt=[3, 4], stop_tokens=[1], lora_rank=None, log_dir=tmp_path)
        yield rollout
        rollout.close()


def send(rollout, policy):
    return rollout.update(policy.write, policy.logps)


def draw(rollout, prompts, seeds):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_completions": 2, "stop_tokens": [1], "tokenizer": None, "generator": generators}
    flat = rollout(None, as_rows(prompts), **options).plain()
    return [flat[start : start + 2] for start in range(0, len(flat), 2)]


def test_what_is_drawn_for_a_prompt_depends_on_its_own_seed(rollout):
    policy, seeds = Table(1), [2**40, 2**50, 2**60]
    assert send(rollout, policy) < 1e-5
    together = draw(rollout, PROMPTS, seeds)
    assert [draw(rollout, [prompt], [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)] == together
    assert draw(rollout, PROMPTS, [5, 2**50, 2**60])[0] != together[0]
    for prompt, group in zip(PROMPTS, together, strict=True):
        for one in group:
            assert one.logps == pytest.approx(policy.logps(prompt, one.tokens), abs=1e-6)
    assert draw(rollout, [], []) == []


def test_the_progress_counts_the_prompts_that_came_back(rollout):
    send(rollout, Table(1))
    reports = []
    rollout.on_progress = reports.append
    drawn = [one for group in draw(rollout, PROMPTS, [1, 2, 3]) for one in group]
    assert [(one.num_ended, one.num_completions) for one in reports] == [(2, 6), (4, 6), (6, 6)]
    assert reports[-1].num_tokens == sum(len(one.tokens) for one in drawn)


def test_the_probe_is_a_completion_and_stays_the_same(rollout, fake):
    prompt, completion = rollout.probe
    assert prompt == [3, 4]
    (asked,) = [body for _, body in fake.asked if "seed" in body]
    assert completion == max((fake.choice(asked, fake.table, index)["token_ids"] for index in range(4)), key=len)
    for seed in (1, 2):
        assert send(rollout, Table(seed)) < 1e-5
    asked = [body["prompt"] for _, body in fake.asked if "prompt_logprobs" in body]
    assert asked == [[*prompt, *completion]] * 2


def test_parity_is_judged_by_the_limits_given(caplog):
    rollout = VLLMRollout(**settings(parity_warning=0.1, parity_limit=0.5))
    rollout.check_parity(Parity(0.05, 1.1, 0.0))
    assert not caplog.records
    rollout.check_parity(Parity(0.2, 1.1, 0.0))
    assert "0.2 nats per token" in caplog.text
    with pytest.raises(ParityError):
        rollout.check_parity(Parity(0.6, 1.1, 0.0))


def test_closing_twice_and_before_it_was_open(rollout):
    rollout.close()
    rollout.close()
    assert rollout.engine is None and not rollout.is_open


def check(*words):
    compat.check(
        schema.check(compose(["method=grpo", "rollout=vllm", f"rollout.vllm_executable={sys.executable}", *words]))
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rollout.temperature=0.7", "rollout.top_k=5"], "rollout.temperature=1"),
        (["rollout.temperature=0.7", "rollout.repetition_penalty=1.1"], "rollout.temperature=1"),
        (["rollout.vllm_executable=no/python"], "make vllm"),
        (["peft=dora"], "peft=lora"),
        (["peft=ia3"], "peft=lora"),
        (["peft=lora", "+peft.modules_to_save=[lm_head]"], "peft=lora"),
        (["peft=lora", "+peft.bias=all"], "peft=lora"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_vllm_cannot_do_is_refused_before_any_weight_is_loaded(words, told):
    with pytest.raises(InputError, match=told):
        check(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["rollout.temperature=0.7"],
        ["rollout.top_p=0.9", "rollout.min_p=0.1"],
        ["rollout.temperature=0", "rollout.top_k=5"],
        ["rollout.urls=[http://node:8000]", "rollout.vllm_executable=no/python"],
        ["peft=lora"],
        ["peft=rslora"],
        ["peft=qlora"],
        ["method=ppo"],
        ["method=rloo"],
    ],
    ids=" ".join,
)
def test_what_works_is_not_refused(words):
    check(*words)


def test_the_environment_is_asked_for_first(tmp_path):
    with pytest.raises(InputError, match="make vllm"):
        VLLMRollout(**settings(vllm_executable="no/python")).open(
            "nowhere", prompt=[3], stop_tokens=[1], lora_rank=None, log_dir=tmp_path
        )
