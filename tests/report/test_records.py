"""Which runs a report is about."""

import pytest

from alignlab.errors import InputError
from alignlab.report.records import flat, read_records
from tests.report.runs import write_job, write_run


def test_runs_below_a_folder_are_found_once(tmp_path):
    run = write_run(tmp_path / "runs" / "dpo" / "a")
    write_run(tmp_path / "runs" / "simpo" / "b", method="simpo", status="failed")
    write_run(run / "checkpoints" / "step-1" / "no_run")
    found = read_records([tmp_path / "runs", run])
    assert [(record.name, record.status, record.reason) for record in found] == [
        ("a", "done", ""),
        ("b", "failed", "ValueError: no luck"),
    ]
    assert found[0].settings["method.beta"] == 0.1 and found[0].metrics["val/loss"] == 0.5
    assert [row["val/loss"] for row in found[0].rows] == [0.7, 0.5]


def test_the_jobs_of_a_sweep_are_its_runs_wherever_they_lie(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "dpo" / "a")
    sweep = tmp_path / "runs" / "sweeps" / "s"
    write_job(sweep, 0, "seed=1", run="runs/dpo/a", status="done")
    write_job(sweep, 1, "method=dpo +seed=-1")
    monkeypatch.chdir(sweep)
    found = read_records([sweep])
    assert [(record.name, record.status) for record in found] == [("a", "done"), ("job 1", "refused")]
    assert found[1].path is None and found[1].settings == {"method": "dpo", "seed": "-1"}


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    for place in ("x", "y"):
        write_run(tmp_path / place / "run")
    assert [record.name for record in read_records([tmp_path])] == ["x/run", "y/run"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "status: 1"])
def test_a_damaged_run_is_shown_as_unreadable(tmp_path, text):
    run = write_run(tmp_path / "a")
    (run / "summary.json").write_text(text)
    (run / "config.yaml").write_text("a: [")
    (record,) = read_records([run])
    assert record.status == "unreadable" and record.settings == {} and record.metrics == {}


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run in it"):
        read_records([tmp_path])
    with pytest.raises(InputError, match="no such folder"):
        read_records([tmp_path / "gone"])


def test_lists_are_values():
    assert flat({"a": {"b": [1, {"c": 2}]}, "d": None}) == {"a.b": [1, {"c": 2}], "d": None}
