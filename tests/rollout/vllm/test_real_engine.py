"""Against the real engine, on a CPU: ``make test-vllm``. One server for all, so the order of the tests matters."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from alignlab.rollout.vllm import completions
from alignlab.rollout.vllm.engine import open_engine
from alignlab.rollout.vllm.parity import measure
from alignlab.rollout.vllm.server import ServerError
from alignlab.rollout.vllm.weights import ArrivalError
from tests.rollout.vllm.policy import (
    POCKET,
    STOP,
    disturb,
    load,
    probe_of,
    sampling,
    seeds_of,
    server_settings,
    token_logps,
)

pytestmark = pytest.mark.vllm
REPOSITORY = Path(__file__).resolve().parents[3]
PYTHON = os.environ.get("ALIGNLAB_VLLM", str(REPOSITORY / ".venv-vllm" / "bin" / "python"))
QUESTIONS = ["What is 59 + 63?", "What is 12 + 30?", "What is 7 + 88?", "What is 41 + 41?"]


@pytest.fixture(scope="module")
def figures():
    """What is measured on the way, printed at the end (``-s``)."""
    noted = {}
    yield noted
    print(json.dumps(noted, indent=1))


@pytest.fixture(scope="module")
def engine(tmp_path_factory, figures):
    if not os.access(PYTHON, os.X_OK):
        pytest.skip(f"no vLLM environment: {PYTHON}")
    log_dir, started = tmp_path_factory.mktemp("vllm"), time.monotonic()
    settings = server_settings(vllm_executable=PYTHON, num_restarts=1)
    engine = open_engine(settings, model=POCKET, sampling=sampling(), lora_rank=8, log_dir=log_dir)
    figures["start_seconds"] = time.monotonic() - started
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts():
    tokenizer = AutoTokenizer.from_pretrained(POCKET)

    def encode(text):
        turn = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]

    return [encode(text) for text in QUESTIONS]


@pytest.fixture(scope="module")
def policy():
    return load()


@pytest.fixture(scope="module")
def adapted():
    torch.manual_seed(0)
    return get_peft_model(load(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")).eval()


def draw(engine, prompts, num_completions, seed, settings=None):
    options = {"num_completions": num_completions, "settings": settings or sampling()}
    return engine.sample(prompts, **options, seeds=seeds_of(seed, prompts))


def parity(model, prompts, groups, temperature=1.0):
    drawn = [(prompt, one) for prompt, group in zip(prompts, groups, strict=True) for one in group]
    sampled = torch.tensor([logp for _, one in drawn for logp in one.logps])
    return measure(sampled, torch.cat([token_logps(model, prompt, one.tokens, temperature) for prompt, one in drawn]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_the_trainers(engine, prompts, policy, figures, temperature):
    groups = draw(engine, prompts, 16, 0, sampling(temperature=temperature))
    found = parity(policy, prompts, groups, temperature)
    figures[f"parity_{temperature}"] = vars(found)
    assert found.mean_difference < 1e-5
    assert found.largest_ratio < 1.001
    assert len({tuple(one.tokens) for one in groups[0]}) > 1
    for one in (one for group in groups for one in group):
        assert one.finished == (one.tokens[-1] == STOP)
        assert one.finished or len(one.tokens) == 48


def test_one_seed_one_sample(engine, prompts):
    drawn = lambda seed, some: draw(engine, some, 4, seed)  # noqa: E731
    tokens = lambda groups: [one.tokens for group in groups for one in group]  # noqa: E731
    assert tokens(drawn(3, prompts)) == tokens(drawn(3, prompts))
    assert tokens(drawn(3, prompts)) != tokens(drawn(4, prompts))


def test_greedy_equals_transformers(engine, prompts, policy):
    groups = draw(engine, prompts, 2, 0, sampling(temperature=0.0))
    for prompt, group in zip(prompts, groups, strict=True):
        expected = policy.generate(
            torch.tensor([prompt]), max_new_tokens=48, do_sample=False, eos_token_id=STOP, pad_token_id=2
        )
        assert [one.tokens for one in group] == [expected[0, len(prompt) :].tolist()] * 2


def test_stop_strings_end_a_completion(engine, prompts):
    tokenizer = AutoTokenizer.from_pretrained(POCKET)
    settings = sampling(temperature=0.0, stop_strings=["</reasoning>"])
    for group in draw(engine, prompts, 1, 0, settings):
        assert group[0].finished
        assert "</reasoning>" in tokenizer.decode(group[0].tokens)
        assert "</reasoning>" not in tokenizer.decode(group[0].tokens[:-1])


@pytest.mark.parametrize("part", ["q_proj", "down_proj", "norm", "embed_tokens", ""])
def test_every_tensor_arrives(engine, prompts, part, figures):
    model = load()
    disturb(model, 0.02, part)
    started = time.monotonic()
    difference = engine.update(model.save_pretrained, probe_of(model))
    figures["update_full_seconds"] = time.monotonic() - started
    assert difference < 1e-5
    assert parity(model, prompts, draw(engine, prompts, 2, 1)).kl < 1e-8


def test_weights_that_were_not_sent_are_noticed(engine):
    model, other = load(), load()
    disturb(other, 3e-6)  # moves the probe by less than the tolerance
    engine.update(model.save_pretrained, probe_of(model))
    with pytest.raises(ArrivalError, match="still uses the weights from before"):
        engine.update(model.save_pretrained, probe_of(other))
    engine.update(model.save_pretrained, probe_of(model))


def test_adapters_arrive_one_after_the_other(engine, prompts, adapted, figures):
    for _ in range(3):
        disturb(adapted, 0.05, "lora_")
        started = time.monotonic()
        assert engine.update(adapted.save_pretrained, probe_of(adapted)) < 1e-5
        figures["update_lora_seconds"] = time.monotonic() - started
        groups = draw(engine, prompts, 2, 1)
        assert parity(adapted, prompts, groups).mean_difference < 1e-5
    assert len(list(engine.update_folder.parent.glob(f"{engine.update_folder.name}/*"))) == 1


def test_speed(engine, prompts, figures):
    for kind, count in (("lora", 12), ("again", 12)):
        started = time.monotonic()
        groups = draw(engine, prompts * count, 16, 2)
        seconds, drawn = time.monotonic() - started, [one for group in groups for one in group]
        tokens = sum(len(one.tokens) for one in drawn)
        figures[f"speed_{kind}"] = {"samples/s": len(drawn) / seconds, "tokens/s": tokens / seconds}


def kill(engine):
    process = engine.servers[0].process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_server_comes_back_with_the_weights(engine, prompts, adapted, figures):
    kill(engine)
    started = time.monotonic()
    groups = draw(engine, prompts, 2, 1)
    figures["return_seconds"] = time.monotonic() - started
    assert parity(adapted, prompts, groups).mean_difference < 1e-5


def test_a_server_killed_for_good_says_where_to_look(engine, prompts, monkeypatch):
    """Killed while it samples: the answer under way breaks off."""
    complete = completions.complete

    def kill_first(*given, **options):
        if engine.servers[0].process.poll() is None:
            kill(engine)
        return complete(*given, **options)

    monkeypatch.setattr(completions, "complete", kill_first)
    with pytest.raises(ServerError, match=r"exit code -9; the last lines of .*vllm_0\.log"):
        draw(engine, prompts, 2, 1)
