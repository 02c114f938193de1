"""Jobs of a sweep that are worse than the median of those before them end early."""

import json

import pytest

from alignlab.cli.sweep import sweep
from alignlab.cli.sweep.job import Job
from alignlab.run_folder.location import JOBS, SWEEP
from alignlab.system.disk import write_text
from tests.callbacks.test_best_weights import TINY
from tests.commands import alignlab, summary

PRUNED = ["trainer.max_steps=6", "callbacks=pruning", "callbacks.exact_match=null", "callbacks.pruning.min_jobs=3"]


def finished(folder, number, losses, exit_code=0):
    """A job that validated every second step."""
    lines = [f"{2 * index + 2},{loss}" for index, loss in enumerate(losses)]
    write_text(folder / f"run{number}" / "metrics.csv", "\n".join(["progress/step,val/loss", *lines, ""]))
    entry = {"exit_code": exit_code, "run": str(folder / f"run{number}")}
    write_text(folder / JOBS / str(number) / "job.json", json.dumps(entry))


@pytest.mark.parametrize(
    ("others", "words", "steps"),
    [
        ([[0.0] * 3, [0.0] * 3, [99.0] * 3], [], 2),
        ([[99.0] * 3, [99.0] * 3, [0.0] * 3], [], 6),
        ([[99.0, 0.0, 0.0], [99.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [], 4),
        ([[0.0] * 3] * 3, ["callbacks.pruning.after_steps=5"], 6),
        ([[0.0] * 3] * 2, [], 6),
    ],
    ids=["worse at once", "better than the median", "worse later", "not so early", "too few jobs"],
)
def test_a_job_ends_where_the_median_is_better(tmp_path, monkeypatch, capsys, others, words, steps):
    for number, losses in enumerate(others):
        finished(tmp_path, number, losses)
    finished(tmp_path, 9, [0.0] * 3, exit_code=1)
    monkeypatch.setenv(SWEEP, str(tmp_path))
    assert alignlab("train", *TINY, *PRUNED, *words, f"run_dir={tmp_path / 'run'}") == 0
    found = summary(tmp_path / "run")
    assert (found["status"], found["steps"]) == ("done", steps) and (tmp_path / "run" / "model").is_dir()
    told = f"pruned after step {steps}: val/loss is"
    assert (told in "".join(capsys.readouterr())) == (steps < 6)


def test_without_a_sweep_nothing_is_pruned(tmp_path, monkeypatch):
    monkeypatch.delenv(SWEEP, raising=False)
    assert alignlab("train", *TINY, *PRUNED, "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}") == 0


def test_jobs_know_their_sweep(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda command, *, env, **_: started.append(env))
    job = Job(0, "", tmp_path, "abc", tmp_path / JOBS / "abc", None)
    sweep.start({"run_dir": None, "resume": "auto"}, job, 0, 1)
    assert started[0][SWEEP] == str(tmp_path)
