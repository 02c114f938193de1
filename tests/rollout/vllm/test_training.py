"""Runs that sample from servers, which here speak as vLLM does and compute with Transformers."""

import gc

import pytest

from alignlab.rollout.vllm.parity import ParityError
from alignlab.rollout.vllm.server import ServerError
from alignlab.rollout.vllm.weights import ArrivalError
from tests.commands import QUIET, alignlab, metrics, start, summary
from tests.rollout.vllm.fake import serving
from tests.rollout.vllm.stand_in import StandIn

SHORT = [
    *("rollout=vllm", "trainer.max_steps=3", "trainer.val_check_interval=3", "checkpoint.every_n_steps=1"),
    *("data.source.num_train=40", "data.source.num_validation=4", "data.global_batch_size=4", "optimizer.lr=1e-3"),
    *("rollout.max_completion_tokens=16", "method.num_completions=4", "method.group_filter=keep"),
    *("method.steps_per_rollout=1", "method/reward=[pattern]", "method.reward.pattern.pattern='[a-m0-4]$'"),
    "rollout.temperature=2",  # wild enough that completions of any policy differ in their last character
    *("rollout.timeout_seconds=20", "scheduler=constant", "scheduler.warmup_steps=0"),
]
LORA = ["peft=lora", "peft.r=4", "optimizer.lr=1e-2"]


@pytest.fixture
def server():
    return StandIn()


def words(run, url, *more):
    folder = run.parent / "weights"
    folder.mkdir(exist_ok=True, parents=True)
    places = [f"rollout.weights_dir={folder}", f"data.cache_dir={run.parent / 'cache'}", f"run_dir={run}"]
    return [*QUIET, *SHORT, *places, f"rollout.urls=[{url}]", *more]


def train(run, server, *more, port=0):
    with serving(server, port) as url:
        assert alignlab("train", *words(run, url, "method=grpo", *more)) == 0
    return metrics(run)


@pytest.mark.parametrize(
    "more",
    [
        ["method=grpo"],
        ["method=grpo", *LORA],
        pytest.param(["method=rloo"], marks=pytest.mark.slow),
        pytest.param(["method=ppo"], marks=pytest.mark.slow),
    ],
    ids=["grpo", "grpo lora", "rloo", "ppo"],
)
def test_samples_are_those_of_the_weights_in_training(more, tmp_path, server):
    rows = train(tmp_path / "run", server, *more)
    assert len(rows) == 3
    assert any(row["train/grad_norm"] > 0 for row in rows[:2]), "else nothing would have to arrive"
    assert all(row["rollout/parity_mean_difference"] < 1e-5 for row in rows)
    assert all(row["rollout/arrival_difference"] < 1e-5 and row["rollout/parity_largest_ratio"] < 1.001 for row in rows)
    assert server.paths().count("/update_weight_version") == 3
    assert summary(tmp_path / "run")["status"] == "done"
    assert not list((tmp_path / "weights").iterdir())


def test_weights_that_get_lost_stop_the_run(tmp_path, server):
    server.deaf = True
    with pytest.raises(ArrivalError, match=r"does not use the weights|still uses the weights"):
        train(tmp_path / "run", server)


def test_samples_of_another_distribution_stop_the_run(tmp_path, server):
    """The weights are right, so that only the samples tell."""
    server.temperature = 1.0
    with pytest.raises(ParityError, match="another temperature"):
        train(tmp_path / "run", server, "rollout.temperature=0.3", "rollout.parity_limit=0.01")


def test_one_rollout_serves_several_steps(tmp_path, server):
    rows = train(tmp_path / "run", server, "method.steps_per_rollout=3")
    assert ["rollout/parity_kl" in row for row in rows] == [True, False, False]
    assert server.paths().count("/update_weight_version") == 1


def test_a_server_that_breaks_gets_its_prompts_again(tmp_path, server):
    """It comes back with its first weights: the run is that of a server that never broke."""
    whole = train(tmp_path / "whole" / "run", StandIn(), "seed=3")
    server.broken = 1
    rows = train(tmp_path / "broken" / "run", server, "seed=3")
    assert [row["reward/mean"] for row in rows] == [row["reward/mean"] for row in whole]


def test_a_server_that_is_lost_ends_the_run_and_leaves_nothing(tmp_path, server):
    with pytest.raises(ServerError, match=r"sampling failed 3 times: .*the engine is dead"):
        server.broken = 1000
        train(tmp_path / "run", server)
    assert not list((tmp_path / "weights").iterdir())
    assert summary(tmp_path / "run")["status"] == "failed"


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path, server, free_port):
    whole = train(tmp_path / "whole" / "run", server)
    train(tmp_path / "cut" / "run", StandIn(), "trainer.max_steps=1", port=free_port)
    gc.collect()  # the folder's lock goes with the run
    rows = train(tmp_path / "cut" / "run", StandIn(), "resume=auto", port=free_port)
    for name in ("reward/mean", "train/loss", "train/grad_norm"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in whole], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [[], LORA], ids=["full", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_z3"])
def test_two_processes_sample_what_one_does(strategy, adapter, tmp_path, server):
    alone = train(tmp_path / "alone" / "run", server, *adapter)
    with serving(StandIn()) as url:
        given = words(
            tmp_path / "run" / "run", url, "method=grpo", "trainer.devices=2", f"strategy={strategy}", *adapter
        )
        process = start(*given)
        told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    for name in ("reward/mean", "train/loss", "completion_tokens/mean"):
        together = [row[name] for row in metrics(tmp_path / "run" / "run")]
        assert together == pytest.approx([row[name] for row in alone], rel=1e-4, abs=1e-6)
