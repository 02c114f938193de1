"""summary.json: filled at the start, at the end and on failure."""

import json
import os
import signal

import pytest

from alignlab.callbacks.summary import Summary
from alignlab.system.processes import Stopped
from tests.callbacks.toy import Toy, newest, train

FACTS = {"method": "sft", "model": "pocket", "strategy": "single", "peft": None, "seed": 1}


def run(folder, steps, **options):
    """A run, and its summary as the disk has it."""
    summary = Summary(path=folder / "summary.json", facts=FACTS, best=None)
    try:
        train(folder / "checkpoints", steps, callbacks=[summary], **options)
    finally:
        found = json.loads((folder / "summary.json").read_text())
    return found


def at(step, act):
    return lambda: Toy(on_step=lambda done: done == step and act())


def test_summary_of_a_run(tmp_path):
    found = run(tmp_path, 8)
    assert found["status"] == "exporting"
    assert FACTS.items() <= found.items()
    assert (found["steps"], found["tokens"], found["supervised_tokens"]) == (8, 800, 400)
    assert found["initial_metrics"].keys() == {"val/loss"}
    assert found["metrics"]["val/loss"] != found["initial_metrics"]["val/loss"]
    assert found["metrics"]["progress/step"] == 8
    assert 0 < found["peak_memory_mib"] <= found["peak_host_memory_mib"]
    assert found["tokens_per_second"] > 800 / found["wall_seconds"]
    assert found["versions"].keys() >= {"python", "torch", "lightning", "transformers"}


def test_a_resumed_run_keeps_its_first_metrics_and_adds_up_its_time(tmp_path):
    first = run(tmp_path, 5)
    second = run(tmp_path, 10, resume=newest(tmp_path / "checkpoints"))
    assert second["initial_metrics"] == first["initial_metrics"] != {}
    assert second["tokens"] == 1000
    assert second["wall_seconds"] > first["wall_seconds"]


def test_resuming_a_finished_run_changes_no_result(tmp_path):
    first = run(tmp_path, 5)
    second = run(tmp_path, 5, resume=newest(tmp_path / "checkpoints"))
    for name in ("status", "steps", "tokens", "metrics", "initial_metrics"):
        assert second[name] == first[name]


def test_statuses_on_the_way_and_on_the_way_out(tmp_path):
    seen = []
    run(tmp_path, 2, make=at(1, lambda: seen.append(json.loads((tmp_path / "summary.json").read_text())["status"])))
    assert seen == ["running"]
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "failed", 9, make=at(3, lambda: 1 / 0))
    failed = json.loads((tmp_path / "failed" / "summary.json").read_text())
    assert (failed["status"], failed["steps"]) == ("failed", 3)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", 9, make=at(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    stopped = json.loads((tmp_path / "stopped" / "summary.json").read_text())
    assert (stopped["status"], stopped["steps"], stopped["tokens"]) == ("stopped", 4, 400)


def test_what_comes_after_the_fit_is_merged(tmp_path):
    summary = Summary(path=tmp_path / "summary.json", facts=FACTS, best=None)
    summary.metrics = {"val/loss": float("nan")}
    summary.write("done", metrics={"val/exact_match": 0.9}, model_folder="model")
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["metrics"] == {"val/loss": None, "val/exact_match": 0.9}
    assert found["model_folder"] == "model"
