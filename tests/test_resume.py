"""A killed run, resumed, is the run that was never killed: bit for bit on the CPU."""

import signal
import time

import pytest
from safetensors.torch import load_file

from tests.commands import QUIET, metrics, start, summary

STEPS = 12
TIMED = ("train/tokens_per_second", "train/step_seconds")
# Several micro-batches a step, three steps an epoch with a short last one, a validation that checkpoints stand beside.
COMMON = [
    *QUIET,
    f"trainer.max_steps={STEPS}",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=5",
    "checkpoint.every_n_steps=2",
    "data.source.num_train=20",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "data.batch_size_per_device=3",
]
CASES = {
    "sft": ["method=sft", "method.neftune_alpha=5"],
    "sft_lora": ["method=sft", "peft=lora", "peft.lora_dropout=0.2", "model.gradient_checkpointing=true"],
    "pretrain": ["method=pretrain", "data.max_tokens_per_sequence=64"],
}


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def weights(run):
    return load_file(next(iter(sorted((run / "model").glob("*.safetensors")))))


def assert_same_run(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].equal(theirs[name]), name
    strip = lambda rows: [{k: v for k, v in row.items() if k not in TIMED} for row in rows]  # noqa: E731
    assert strip(metrics(one)) == strip(metrics(other))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_resume_bitwise(tmp_path, case, how):
    words = ["train", *COMMON, *CASES[case]]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert finish(start(*words[1:], f"run_dir={whole}"))[0] == 0
    process = start(*words[1:], f"run_dir={broken}")
    wait_for((broken / "checkpoints" / "step-00000004").exists, process)
    process.send_signal(how)
    code, _ = finish(process)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 143)
    assert summary(broken)["status"] == ("running" if how == signal.SIGKILL else "stopped")
    code, output = finish(start(*words[1:], f"run_dir={broken}", "resume=auto"))
    assert code == 0, output
    assert "Resuming" in output
    assert_same_run(whole, broken)
    assert summary(broken)["initial_metrics"] == summary(whole)["initial_metrics"]


def test_a_broken_newest_checkpoint_falls_back_and_says_so(tmp_path):
    words = [*COMMON, *CASES["sft"], f"run_dir={tmp_path / 'run'}"]
    assert finish(start(*words))[0] == 0
    newest, before = sorted((tmp_path / "run/checkpoints").glob("step-*"))[::-1][:2]
    state = newest / "state.ckpt"
    state.write_bytes(state.read_bytes()[:-100])
    expected = weights(tmp_path / "run")
    code, output = finish(start(*words, "resume=auto"))
    assert code == 0, output
    assert newest.name in output and f"after step {int(before.name[5:])}" in output
    again = weights(tmp_path / "run")
    assert all(again[name].equal(expected[name]) for name in expected)
