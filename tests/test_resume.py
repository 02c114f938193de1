"""A killed run, resumed, is the run that was never killed: bit for bit on the CPU."""

import functools
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from alignlab import run
from alignlab.callbacks import export_trial
from alignlab.models.export import ExportError
from alignlab.run_folder.metrics_file import read_metrics
from alignlab.system.processes import Stopped
from tests.commands import QUIET, alignlab, metrics, start, summary

STEPS = 12
TIMED = ("train/tokens_per_second", "train/step_seconds", "time/rollout", "time/scoring")
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
# A rollout lasts eight steps: each of its four parts twice. So every checkpoint up to the sixth stands within one.
ROLLOUTS = [
    "method.num_completions=4",
    "method.steps_per_rollout=4",
    "method.num_iterations=2",
    "method.group_filter=keep",
    "rollout.max_completion_tokens=96",
]
STEERED = ["method.reward_kl_coef=0.05", "method.reward_kl_target=1"]
CASES = {
    "sft": ["method=sft", "method.neftune_alpha=5"],
    "sft_lora": ["method=sft", "peft=lora", "peft.lora_dropout=0.2", "model.gradient_checkpointing=true"],
    "sft_muon": ["method=sft", "optimizer=muon"],
    "pretrain": ["method=pretrain", "data.max_tokens_per_sequence=64"],
    "dpo": ["method=dpo", "method.reference=ema"],
    "dpo_lora": ["method=dpo", "method.reference=synchronised", "method.reference_every_n_steps=3", "peft=lora"],
    "group_dpo": ["method=group_dpo"],
    "kto": ["method=kto", "method.precompute_reference=true"],
    "reward_model": ["method=reward_model"],
    "grpo": ["method=grpo", *ROLLOUTS],
    "ppo": ["method=ppo", *ROLLOUTS, *STEERED],
}
SPEED = [
    "model.compile=true",
    "model.gradient_checkpointing=true",
    "model.activation_offloading=true",
    "data.num_workers=1",
]
FAST = {
    "sft pretrain orpo simpo cpo reward_model": SPEED,
    "dpo group_dpo kto": ["method.precompute_reference=true", *SPEED],
    "grpo rloo ppo": [*ROLLOUTS, "rollout.dtype=bfloat16", *SPEED],
}
CASES |= {
    f"fast_{method}": [f"method={method}", *words] for methods, words in FAST.items() for method in methods.split()
}
"""Every method with every speed feature."""
QUICK = (("sft", signal.SIGKILL),)


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def weights(run):
    return load_file(next(iter(sorted((run / "model").glob("*.safetensors")))))


def assert_same_run(one, other, ignored=TIMED):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].equal(theirs[name]), name
    for mine, yours in zip(*(read_metrics(folder / "metrics.csv") for folder in (one, other)), strict=True):
        assert {k: v for k, v in mine.items() if k not in ignored} == {
            k: v for k, v in yours.items() if k not in ignored
        }
    if (one / "samples.jsonl").exists():
        assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never killed, once per case."""

    @functools.cache
    def run(case):
        folder = tmp_path_factory.mktemp("whole") / "run"
        code, output = finish(start(*COMMON, *CASES[case], f"run_dir={folder}"))
        assert code == 0, output
        return folder

    return run


def test_a_longer_run_goes_on_at_the_rate_that_its_length_asks_for(tmp_path, capfd):
    words = [*COMMON, "method=sft", f"run_dir={tmp_path}", "scheduler=linear", "scheduler.min_lr_ratio=0"]
    assert alignlab("train", *words, "trainer.max_steps=4") == 0
    assert alignlab("train", *words, "trainer.max_steps=8", "resume=auto") == 0
    assert "the schedule of 8 steps goes on at rate" in capfd.readouterr().err
    rates = [row["train/lr"] for row in metrics(tmp_path) if "train/lr" in row]
    assert len(rates) == 8 and all(rate > 0 for rate in rates)
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[4] > rates[3]


def test_the_held_out_loss_does_not_depend_on_the_batch_size_of_training(tmp_path):
    found = []
    for size in (2, 8):
        words = [
            "method=kto",
            "trainer.max_steps=1",
            f"data.global_batch_size={size}",
            f"run_dir={tmp_path / str(size)}",
        ]
        assert alignlab("train", *COMMON, *words, "data.source.num_validation=12", "data.batch_size_per_device=2") == 0
        found.append(summary(tmp_path / str(size))["initial_metrics"]["val/loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(
    ("case", "how"),
    [
        pytest.param(case, how, id=f"{word}-{case}", marks=[] if (case, how) in QUICK else pytest.mark.slow)
        for word, how, cases in (
            ("killed", signal.SIGKILL, CASES),
            ("terminated", signal.SIGTERM, ("sft", "sft_lora", "pretrain", "grpo")),
        )
        for case in cases
    ],
)
def test_resume_bitwise(tmp_path, whole, case, how):
    words = [*COMMON, *CASES[case], f"run_dir={tmp_path}"]
    process = start(*words)
    wait_for((tmp_path / "checkpoints" / "step-00000004").exists, process)
    process.send_signal(how)
    code, _ = finish(process)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 143)
    assert summary(tmp_path)["status"] == ("running" if how == signal.SIGKILL else "stopped")
    code, output = finish(start(*words, "resume=auto"))
    assert code == 0, output
    assert "Resuming" in output
    # A validation that is due when the run is asked to stop is given up, and not made up for.
    held_out = {name for row in metrics(whole(case)) for name in row if name.startswith("val/")}
    assert_same_run(whole(case), tmp_path, {*TIMED, *(held_out if how == signal.SIGTERM else ())})
    assert summary(tmp_path)["initial_metrics"] == summary(whole(case))["initial_metrics"]


@pytest.mark.parametrize("name", ["save", "verify"])
def test_an_export_that_was_cut_is_resumed(tmp_path, whole, monkeypatch, name):
    """The run is not done before its model is there and compared, and trains no step again."""

    work = getattr(export_trial, name)

    def stop(*args):
        if tmp_path / "model" not in args:  # the trial before training
            return work(*args)
        raise Stopped(signal.SIGTERM)

    words = ["train", *COMMON, *CASES["sft"], "checkpoint.every_n_steps=5", f"run_dir={tmp_path}"]
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(export_trial, name, stop)
        alignlab(*words)
    assert stopped.value.code == 143
    assert summary(tmp_path)["status"] == "exporting"
    rows = metrics(tmp_path)
    assert alignlab(*words, "resume=auto") == 0
    assert (summary(tmp_path)["status"], metrics(tmp_path)) == ("done", rows)
    assert_same_run(whole("sft"), tmp_path)


def test_a_model_that_differs_from_what_was_trained_fails_the_run(tmp_path, monkeypatch, capsys):
    def differ(*_, **__):
        raise ExportError("it differs")

    monkeypatch.setattr(run, "make_writer", lambda *_: SimpleNamespace(write_and_compare=differ))
    assert alignlab("train", *COMMON, *CASES["sft"], f"run_dir={tmp_path}", "trainer.max_steps=1") == 1
    assert "it differs" in capsys.readouterr().err
    assert summary(tmp_path)["status"] == "failed"


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_what_it_was(tmp_path, whole):
    code, output = finish(start(*COMMON, f"resume={whole('sft')}", "optimizer=sgd"))
    assert code == 2
    assert "optimizer._target_=torch.optim.SGD" in output and "--from RUN" in output


@pytest.mark.slow
def test_a_broken_newest_checkpoint_falls_back_and_says_so(tmp_path, whole):
    shutil.copytree(whole("sft"), tmp_path / "run", symlinks=True)
    newest, before = sorted((tmp_path / "run/checkpoints").glob("step-*"))[::-1][:2]
    state = newest / "state.ckpt"
    state.write_bytes(state.read_bytes()[:-100])
    code, output = finish(start(*COMMON, *CASES["sft"], f"run_dir={tmp_path / 'run'}", "resume=auto"))
    assert code == 0, output
    assert newest.name in output and f"after step {int(before.name[5:])}" in output
    assert_same_run(whole("sft"), tmp_path / "run")
