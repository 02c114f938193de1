"""A strategy from outside the package needs no edit here: ``strategy._target_=`` or a file in ``--config-dir``."""

import pytest
from tests.commands import QUIET, alignlab, metrics, summary

OWN = '''
"""Strategies that say that they were used."""

from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy


class NotedSingle(SingleDeviceStrategy):
    """One device, and a file that tells that it was set up."""

    def __init__(self, *, note: str):
        super().__init__(device="cpu")
        self.note = note

    def setup_environment(self):
        """Write the file."""
        super().setup_environment()
        Path(self.note).write_text(str(self.root_device))


def noted_ddp(*, gradient_as_bucket_view: bool) -> DDPStrategy:
    """Copies, with an option that strategy=ddp does not have."""
    return DDPStrategy(gradient_as_bucket_view=gradient_as_bucket_view)
'''


@pytest.fixture
def words(tmp_path, monkeypatch):
    (tmp_path / "own_lab.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    small = ["trainer.accelerator=cpu", "trainer.max_steps=2"]
    small += ["data.source.num_train=64", "data.source.num_validation=8"]
    return [*QUIET, *small, f"run_dir={tmp_path / 'run'}"]


def test_a_class_of_ones_own_trains(words, tmp_path):
    """As ``strategy._target_=`` with its argument."""
    own = ["strategy._target_=own_lab.NotedSingle", f"strategy.note={tmp_path / 'note'}"]
    assert alignlab("train", *words, *own) == 0
    assert (tmp_path / "note").read_text() == "cpu"
    assert summary(tmp_path / "run")["strategy"] == "noted_single"
    steps = [row["progress/step"] for row in metrics(tmp_path / "run") if "train/loss" in row]
    assert steps == [1, 2]


def test_a_function_of_ones_own_trains_on_two_ranks(words, tmp_path):
    """As an option in a folder of one's own."""
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    option = tmp_path / "conf" / "strategy" / "noted.yaml"
    option.write_text("_target_: own_lab.noted_ddp\ngradient_as_bucket_view: true\n")
    own = ["--config-dir", tmp_path / "conf", "strategy=noted", "trainer.devices=2"]
    assert alignlab("train", *words, *own) == 0
    assert summary(tmp_path / "run")["strategy"] == "noted_ddp"


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["strategy.nte=x"], "'strategy.note'"),
        (["strategy._target_=own_lab.Path"], "the standard library"),
        (["strategy._target_=torch.optim.AdamW"], "it should be a lightning.pytorch.strategies.Strategy"),
    ],
)
def test_it_is_checked_like_ours(words, own, said, capsys):
    assert alignlab("train", *words, "strategy._target_=own_lab.NotedSingle", "strategy.note=x", *own) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [["trainer.devices=2"], ["trainer.num_nodes=2"], ["trainer.devices=auto"], ["trainer.devices=-1"]]
)
def test_single_is_one_process(words, more, capsys, monkeypatch):
    """Where ``auto`` finds two devices as well."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert alignlab("train", *words, "trainer.accelerator=cuda", *more) == 2
    assert "Type strategy=ddp" in capsys.readouterr().err
