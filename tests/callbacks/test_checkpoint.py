"""Checkpoints are whole or absent, and a resumed run equals an uninterrupted one bit for bit."""

import json
import os
import signal

import lightning
import pytest
import torch

from alignlab.callbacks.checkpoint import Checkpoint
from alignlab.errors import InputError
from alignlab.run_folder import storage
from alignlab.run_folder.metrics_file import MetricsFile, read_metrics
from alignlab.system import disk
from alignlab.system.processes import Stopped, leaving_on_signals
from tests.callbacks.toy import Toy, newest, train


def weights_equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("stop_at", [3, 4, 10, 13, 20, 21], ids=lambda step: f"after_{step}")
def test_resume_bitwise(tmp_path, stop_at):
    """A resumed run equals an uninterrupted one: mid-epoch, at a validation (4), at an epoch's end (10)."""
    whole = train(tmp_path / "whole", 25)
    first = train(tmp_path / "parts", stop_at)
    second = train(tmp_path / "parts", 25, seed=999, resume=newest(tmp_path / "parts"))
    assert first.losses + second.losses == whole.losses
    assert weights_equal(second, whole)


class Seen(lightning.Callback):
    """Validation results by step."""

    def __init__(self):
        self.losses = {}

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.losses[trainer.global_step] = trainer.callback_metrics["val/loss"].item()


def test_resume_from_any_checkpoint_of_a_run_repeats_its_rest(tmp_path):
    """Weights and validations: none is skipped or repeated, also where a checkpoint falls on a validation (8, 20)."""
    seen = Seen()
    whole = train(tmp_path, 22, every=1, keep_last=99, callbacks=[seen])
    for step in (7, 8, 10, 11, 20):
        saved, again = storage.open_checkpoint(storage.step_folder(tmp_path, step)), Seen()
        rest = train(tmp_path / f"from-{step}", 22, seed=step, resume=saved, callbacks=[again])
        assert rest.losses == whole.losses[step:]
        assert again.losses == {at: loss for at, loss in seen.losses.items() if at > step}


def test_the_row_of_a_step_is_on_the_disk_before_its_checkpoint(tmp_path, monkeypatch):
    """A run that is killed right after a checkpoint has lost nothing that its resumed self will not tell again."""
    seen, publish = [], storage.publish

    def spy(folder, step, **options):
        seen.append((step, read_metrics(logger.path)[-1]))
        publish(folder, step, **options)

    monkeypatch.setattr(storage, "publish", spy)
    logger = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    train(tmp_path, 8, every=3, validate=5, loggers=[logger])
    assert [(step, row["progress/step"]) for step, row in seen] == [(3, 3), (6, 6), (8, 8)]
    rows = read_metrics(logger.path)
    assert [row["progress/step"] for row in rows] == list(range(1, 9))
    assert all(row == rows[step - 1] for step, row in seen)


def test_validation_does_not_change_training(tmp_path):
    often, seldom = train(tmp_path / "a", 10, validate=2), train(tmp_path / "b", 10, validate=5)
    assert often.losses == seldom.losses


@pytest.mark.parametrize("validate", [4, 5])
def test_resume_by_epochs(tmp_path, validate):
    whole = train(tmp_path / "whole", -1, max_epochs=2, validate=validate)
    first = train(tmp_path / "parts", -1, max_epochs=1, validate=validate)
    rest = train(tmp_path / "parts", -1, max_epochs=2, seed=9, resume=newest(tmp_path / "parts"), validate=validate)
    assert len(first.losses) == len(rest.losses) == 10
    assert first.losses + rest.losses == whole.losses


class CountsItsSteps(Toy):
    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches  # makes Lightning build the loader before it reads the position
        return super().configure_optimizers()


def test_position_is_restored_though_the_loader_was_made_early(tmp_path):
    whole = train(tmp_path / "whole", 15, make=CountsItsSteps)
    train(tmp_path / "parts", 7, make=CountsItsSteps)
    rest = train(tmp_path / "parts", 15, seed=9, make=CountsItsSteps, resume=newest(tmp_path / "parts"))
    assert rest.losses == whole.losses[7:]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("at", "validate"),
    [(6, 4), (8, 4), (10, 4), (10, 5)],
    ids=["mid_epoch", "at_validation", "epoch_end", "epoch_end_and_validation"],
)
def test_signal_finishes_the_step_saves_and_resumes_bitwise(tmp_path, signum, code, at, validate):
    whole = train(tmp_path / "whole", 14, validate=validate)
    before = signal.getsignal(signum)

    def stop(step):
        if step == at:
            os.kill(os.getpid(), signum)

    with pytest.raises(Stopped) as error:
        train(tmp_path / "parts", 14, validate=validate, make=lambda: Toy(on_step=stop))
    assert error.value.code == code
    assert signal.getsignal(signum) == before
    assert newest(tmp_path / "parts").step == at
    rest = train(tmp_path / "parts", 14, seed=9, validate=validate, resume=newest(tmp_path / "parts"))
    assert rest.losses == whole.losses[at:]
    assert weights_equal(rest, whole)


class StopsInValidation(Toy):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)


def test_signal_during_validation_saves_the_step_before_it(tmp_path):
    whole = train(tmp_path / "whole", 14)
    with pytest.raises(Stopped):
        train(tmp_path / "parts", 14, make=StopsInValidation)
    rest = train(tmp_path / "parts", 14, seed=9, resume=newest(tmp_path / "parts"))
    assert rest.losses == whole.losses[8:]


def test_second_interrupt_ends_at_once_without_a_checkpoint(tmp_path):
    def stop(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped) as error:
        train(tmp_path, 9, make=lambda: Toy(on_step=stop))
    assert error.value.code == 130
    assert newest(tmp_path) is None


def test_a_second_sigterm_still_waits_for_the_checkpoint(tmp_path):
    def stop(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped) as error:
        train(tmp_path, 9, make=lambda: Toy(on_step=stop))
    assert error.value.code == 143
    assert newest(tmp_path).step == 3


@pytest.fixture
def as_a_command():
    """Signals as ``alignlab`` handles them."""
    with leaving_on_signals():
        yield


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_validation_start", None), ("on_train_start", 1), ("on_train_end", 9), ("on_fit_end", 9)],
)
def test_a_signal_at_any_moment_of_a_fit_ends_it(tmp_path, hook, step, as_a_command):
    """Before the first step without a checkpoint, after the last one with it."""

    class Signalled(Toy):
        pass

    def send(self, *_):
        if self.trainer.global_step in (0, 9):
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(Signalled, hook, send)
    with pytest.raises(Stopped) as error:
        train(tmp_path, 9, make=Signalled)
    assert error.value.code == 143
    assert (newest(tmp_path) and newest(tmp_path).step) == step


def test_contents_are_plain_and_pruned(tmp_path):
    train(tmp_path, 20, every=4, keep_last=2)
    folder = storage.step_folder(tmp_path, 20)
    names = {"state.ckpt", "random-00000.pt", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == names - {"manifest.json"}
    assert torch.load(folder / "state.ckpt", weights_only=True)["global_step"] == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "step-00000016", "step-00000020"]
    assert (tmp_path / "last").resolve() == folder.resolve()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: os.truncate(path, 100), "state.ckpt has 100 bytes"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "content of state.ckpt"),
        (lambda path: path.unlink(), "state.ckpt is missing"),
        (lambda path: path.with_name("manifest.json").write_text("{"), "manifest.json is missing or cannot be read"),
    ],
    ids=["truncated", "zeroed", "missing", "no_manifest"],
)
def test_broken_newest_falls_back_to_the_one_before_and_says_so(tmp_path, damage, said):
    whole = train(tmp_path, 10, every=4)
    damage(tmp_path / "step-00000010" / "state.ckpt")
    with pytest.raises(InputError, match=said):
        storage.open_checkpoint(tmp_path / "last")
    saved, complaints = storage.newest_valid(tmp_path)
    assert saved.step == 8
    assert len(complaints) == 1 and said in complaints[0] and "step-00000010" in complaints[0]
    assert train(tmp_path, 10, seed=9, resume=saved).losses == whole.losses[8:]
    assert newest(tmp_path).step == 10


def test_crash_while_writing_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    def crash(path, text):
        raise OSError("no space left on device")

    train(tmp_path, 4, every=4)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(disk, "write_text", crash)
        train(tmp_path, 10, every=4, resume=newest(tmp_path))
    assert storage.newest_valid(tmp_path)[1] == []
    assert newest(tmp_path).step == 4
    assert (tmp_path / "last" / "state.ckpt").is_file()
    train(tmp_path, 10, every=4, resume=newest(tmp_path))
    assert not list(tmp_path.glob(".*"))


def test_checkpoints_of_an_abandoned_future_are_removed(tmp_path):
    train(tmp_path, 12, every=4)
    train(tmp_path, 6, resume=storage.open_checkpoint(tmp_path / "step-00000004"))
    assert newest(tmp_path).step == 6


def frozen():
    return Toy(frozen=True)


def test_frozen_weights_are_not_written_and_resume_is_still_bitwise(tmp_path):
    whole = train(tmp_path / "whole", 12, make=frozen)
    train(tmp_path / "parts", 6, make=frozen)
    saved = newest(tmp_path / "parts")
    assert set(torch.load(saved.state, weights_only=True)["state_dict"]) == {"head.1.weight", "head.1.bias"}
    rest = train(tmp_path / "parts", 12, make=frozen, resume=saved)  # the same seed makes the same frozen weights
    assert rest.losses == whole.losses[6:]


def test_another_model_is_refused_by_name(tmp_path):
    train(tmp_path, 2, make=frozen)
    with pytest.raises(InputError, match=r"2 trainable weights are not in it \(first: base.bias\)"):
        train(tmp_path, 4, resume=newest(tmp_path))


def test_another_number_of_ranks_goes_on(tmp_path, monkeypatch, capsys):
    """Weights and data go on; random states belong to ranks, so new ones are drawn and the log says so."""
    train(tmp_path, 2)
    state = newest(tmp_path)
    monkeypatch.setattr(Checkpoint, "on_save_checkpoint", lambda *_: None)
    original = Checkpoint.on_load_checkpoint
    pretend = lambda self, trainer, module, saved: original(self, trainer, module, saved | {"world_size": 2})  # noqa: E731
    monkeypatch.setattr(Checkpoint, "on_load_checkpoint", pretend)
    train(tmp_path, 4, resume=state)
    assert "new random states, since 2 rank(s) wrote it and 1 resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("every", "every_epoch", "steps"), [(None, 2, {20, 25}), (8, 1, {8, 10, 16, 20, 24, 25}), (None, None, {25})]
)
def test_checkpoints_by_steps_and_by_epochs(tmp_path, every, every_epoch, steps):
    """An epoch has ten steps; the last step always gets a checkpoint."""
    train(tmp_path, 25, every=every, every_epoch=every_epoch, keep_last=99)
    assert {int(path.name[5:]) for path in tmp_path.glob("step-*")} == steps
