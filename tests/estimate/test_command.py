"""``alignlab estimate``, and the words of a run that died of memory."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alignlab.estimate import estimate as estimating
from alignlab.estimate import exhausted
from alignlab.methods.sft import SFT
from tests.commands import QUIET, alignlab

SMALL = ["data=arithmetic", "data.source.num_train=64", "data.source.num_validation=4", "callbacks=none"]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [*SMALL, f"data.cache_dir={tmp_path / 'tokens'}"]


def test_a_table_and_the_same_numbers_as_a_file(words, capsys):
    big = ["model=scratch", "model.config.hidden_size=4096", "model.config.intermediate_size=16384"]
    big += ["model.config.num_hidden_layers=40"]
    named = ["estimate.hardware=h100x8", "strategy=ddp", "estimate.json=found.json"]
    assert alignlab("estimate", *words, *big, *named) == 0
    found, shown = json.loads(Path("found.json").read_text()), capsys.readouterr().out
    assert found["hardware"] == "8 × h100" and not found["fits"]
    assert found["peak_bytes"] == sum(sizes.get(found["peak_moment"], 0) for sizes in found["terms_bytes"].values())
    assert "does not fit" in shown and found["changes"][0]["type"] in shown
    assert sorted(path.name for path in Path().iterdir()) == ["found.json", "tokens"]
    Path("found.json").write_text("{}")
    assert alignlab("estimate", *words, "estimate.json=found.json") == 2
    assert "not an estimate" in capsys.readouterr().err and Path("found.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("estimate.hardware=h10x8", "'h100'"),
        ("estimate.mfu=2", "less than or equal to 1"),
        ("estimate.hardware=h100x8", "strategy=ddp"),  # a single process trains on a single device
    ],
)
def test_refusals(words, wrong, told, capsys):
    assert alignlab("estimate", *words, wrong) == 2
    assert told in capsys.readouterr().err


def test_a_run_that_dies_of_memory_says_what_took_it_and_what_to_type(words, monkeypatch, capsys):
    monkeypatch.setattr(SFT, "compute_loss", lambda *_: torch.empty(2**52))
    assert alignlab("train", *QUIET[:1], *words, "model=scratch", "run_dir=run") == 1
    told = capsys.readouterr().err
    assert "memory is exhausted" in told and "activations" in told
    assert "Type data.batch_size_per_device=" in told and "alignlab estimate" in told
    assert json.loads(Path("run/summary.json").read_text())["status"] == "failed"


def test_what_a_run_died_of_is_told_without_an_estimate_too(words, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no such shape")

    monkeypatch.setattr(SFT, "compute_loss", lambda *_: torch.empty(2**52))
    monkeypatch.setattr(exhausted, "estimate", broken)
    assert alignlab("train", *QUIET[:1], *words, "run_dir=run") == 1
    told = capsys.readouterr().err
    assert "memory is exhausted: " in told and "allocate memory" in told and "no estimate: no such shape" in told


def test_a_card_has_the_memory_that_it_says(monkeypatch):
    """A100 stands for one of 80 GB, and is the name of those of 40 GB too; of an unknown card speeds are assumed."""
    config = {"trainer": {"devices": 1, "num_nodes": 1, "accelerator": "gpu"}}
    monkeypatch.setattr(estimating, "uses_cuda", lambda accelerator: True)
    monkeypatch.setattr(estimating, "num_local_processes", lambda *_: 1)
    for name, told in (("NVIDIA A100-SXM4-40GB", "1 × a100"), ("Card of ours", "1 × Card of ours")):
        found = SimpleNamespace(name=name, total_memory=40 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=found: found)
        hardware = estimating.hardware_of(config, None)
        assert str(hardware) == told and hardware.card.num_bytes == 40 * 2**30 and hardware.card.flops > 0


def test_other_errors_stay_what_they_are(words, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(SFT, "compute_loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        alignlab("train", *QUIET[:1], *words, "run_dir=run")


def test_a_trace_of_some_steps(words):
    steps = ["trainer.max_steps=7", "data.global_batch_size=4", "trainer.profiler=torch", "trainer.limit_val_batches=0"]
    assert alignlab("train", *QUIET[:1], *words, *steps, "run_dir=run") == 0
    events = json.loads(Path("run/trace/rank-0.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if "dur" in event]
    assert sorted(name for name in set(names) if name.startswith("ProfilerStep")) == [
        f"ProfilerStep#{number}" for number in (3, 4, 5)
    ]
    assert "aten::linear" in names


def test_what_offloading_saves_is_said_not_to_be_counted(capfd):
    words = ["estimate", "method=sft", "data.source.num_train=8", "model.activation_offloading=true"]
    assert alignlab(*words) == 0
    assert "Offloading of activations is not counted" in capfd.readouterr().out
