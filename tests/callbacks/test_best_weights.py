"""The best weights of a run: which are kept, that they survive a resume, and that ``model/`` has them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from alignlab.callbacks.best_weights import BestWeights
from alignlab.models.locations import POCKET
from alignlab.run_folder import storage
from alignlab.system.disk import write_text
from tests.callbacks.toy import Toy, newest, train
from tests.commands import QUIET, alignlab, start, summary

TINY = [
    *QUIET,
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=2",
    "data.source.num_train=20",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "scheduler=constant",
    "scheduler.warmup_steps=0",
    "optimizer.lr=0.03",
]
"""At this rate the held-out loss jumps in the first two steps and falls after them."""

BEST_AT_2 = {
    "none": ["checkpoint.best=val/loss", "checkpoint.best_mode=max"],
    "lora": ["checkpoint.best=val/loss", "trainer.num_sanity_val_steps=0"],
}
"""For a test, settings with which the best weights are neither the first nor the last, by adapter."""

SCRIPT = {0: 5.0, 2: 3.0, 4: 4.0, 6: float("nan"), 8: 1.0, 10: 1.0, 12: 2.0}
"""What validation gives, by the number of steps done."""


class Scripted(Toy):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(SCRIPT[self.trainer.global_step]))


class WritesSteps:
    """Writes the step for the weights."""

    def write(self, method, folder):
        shutil.rmtree(folder, ignore_errors=True)
        write_text(folder / "step.json", json.dumps(method.trainer.global_step))
        return None, torch.zeros(1)


def kept(folder, steps, mode="min", **options):
    """Train a toy; return the kept step and value, and the step on the disk."""
    best = BestWeights(checkpoints=folder, metric="val/loss", mode=mode, writer=WritesSteps())
    options |= {"every": 1, "keep_last": 99, "validate": 2, "callbacks": [best], "additions": [best.add_to]}
    train(folder, steps, make=Scripted, **options)
    return best.kept.step, best.kept.value, json.loads((folder / "best" / "step.json").read_text())


@pytest.mark.parametrize(
    ("mode", "steps", "step", "value"),
    [("min", 2, 2, 3.0), ("min", 6, 2, 3.0), ("min", 12, 8, 1.0), ("max", 12, 0, 5.0)],
)
def test_the_first_of_the_best_finite_values_is_kept(tmp_path, mode, steps, step, value):
    assert kept(tmp_path, steps, mode) == (step, value, step)


@pytest.mark.parametrize("step", [1, 3, 6, 7, 9, 12])
def test_a_branch_from_any_checkpoint_keeps_the_same_weights(tmp_path, step):
    whole = kept(tmp_path / "whole", 12)
    saved = storage.open_checkpoint(storage.step_folder(tmp_path / "whole", step))
    assert kept(tmp_path / "branch", 12, seed=9, resume=saved) == whole


def test_what_a_killed_run_kept_after_its_last_checkpoint_does_not_count(tmp_path):
    """It resumes from step 7, where step 2 had the lowest loss; the weights of step 8 were kept after that."""
    kept(tmp_path, 8)
    newest(tmp_path).folder.rename(tmp_path / "elsewhere")
    assert kept(tmp_path, 7, resume=newest(tmp_path)) == (2, 3.0, 2)


def weights(folder):
    return load_file(next(folder.glob("*.safetensors")))


def are_equal(one, other):
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_early_stopping_ends_with_the_best_weights_here_those_before_training(tmp_path, capsys):
    early = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=99"]
    words = ["train", *TINY, "trainer.max_steps=20", *early, "callbacks.exact_match=null", f"run_dir={tmp_path}"]
    assert alignlab(*words, "checkpoint.every_n_steps=null", "checkpoint.every_n_epochs=1") == 0
    found = summary(tmp_path)
    value = found["initial_metrics"]["val/loss"]
    assert found["steps"] == 4
    assert found["best"] == {"metric": "val/loss", "mode": "min", "step": 0, "value": value}
    assert "model/ has the weights from before the first step, with the lowest val/loss: 0.0" in capsys.readouterr().out
    assert are_equal(tmp_path / "model", POCKET)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("checkpoints/step-*")) == [3, 4], (
        "an epoch has three steps"
    )


@pytest.mark.parametrize("peft", [pytest.param("none", marks=pytest.mark.slow), "lora"])
def test_a_resumed_run_ends_with_the_weights_that_it_kept_before(tmp_path, peft):
    words = ["train", *TINY, *BEST_AT_2[peft], f"run_dir={tmp_path / 'run'}", f"peft={peft}"]
    words += ["checkpoint.also_model=true", "checkpoint.every_n_steps=2", "checkpoint.keep_last=9"]
    assert alignlab(*words, "trainer.max_steps=3") == 0
    assert alignlab(*words, "trainer.max_steps=4", "resume=auto") == 0
    best, steps = summary(tmp_path / "run")["best"], tmp_path / "run" / "checkpoints"
    assert best["step"] == 2
    assert are_equal(tmp_path / "run" / "model", steps / "step-00000002" / "model")
    assert not are_equal(tmp_path / "run" / "model", steps / "step-00000004" / "model")
    starts = [f"init_from={steps / 'step-00000002'}", "trainer.max_steps=1", f"run_dir={tmp_path / 'next'}"]
    assert alignlab("train", *TINY, *starts) == 0
    assert summary(tmp_path / "next")["initial_metrics"]["val/loss"] == pytest.approx(best["value"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["checkpoint.best=val/rewards/margins"], "It logs val/loss, val/nll, val/perplexity, val/token_accuracy"),
        (["checkpoint.best=val/loss", "trainer.limit_val_batches=0"], "there are no held-out rows"),
    ],
)
def test_a_metric_that_no_validation_logs_is_refused_before_training(tmp_path, capsys, words, told):
    folder = tmp_path / "run"
    assert alignlab("train", *TINY, *words, "trainer.max_steps=2", f"run_dir={folder}") == 2
    assert told in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "peft"), [("fsdp", "lora"), ("fsdp", "none"), ("deepspeed_z3", "none")])
def test_sharded_weights_are_kept_too(tmp_path, strategy, peft):
    words = [*TINY, *BEST_AT_2[peft], f"peft={peft}", f"strategy={strategy}", "trainer.devices=2"]
    words += ["checkpoint.also_model=true", "checkpoint.every_n_steps=2", "checkpoint.keep_last=9"]
    for step, more in ((3, []), (6, ["resume=auto"])):
        process = start(*words, f"trainer.max_steps={step}", f"run_dir={tmp_path}", *more)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert summary(tmp_path)["best"]["step"] == 2
    assert are_equal(tmp_path / "model", tmp_path / "checkpoints" / "step-00000002" / "model")
