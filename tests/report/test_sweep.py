"""A sweep with a job that fails, run twice, and its report in a browser."""

import csv
import re

import pytest

from tests.commands import REPOSITORY, alignlab, start
from tests.report.test_page import in_browser

FEW = ["data.source.num_train=16", "data.source.num_validation=4", "data.global_batch_size=8", "trainer.max_steps=2"]
GRID = ["method=dpo,simpo", "optimizer.lr=1e-4,3e-4", "seed=1,2,3"]
FAIL = "callbacks.fail={_target_: tests.report.failing.FailFor, method: SimPO, seed: 2, lr: 3e-4}"


@pytest.mark.slow
def test_a_sweep_of_twelve_jobs_with_a_failure_is_run_twice_and_reported(tmp_path):
    """The second start runs only the job that failed."""
    folder, out = tmp_path / "sweep", tmp_path / "out"
    words = ["-m", *GRID, *FEW, FAIL, "logger=none", "callbacks.exact_match=null", f"run_dir={folder}"]
    words += ["launcher.num_jobs=2"]
    said = []
    for _ in range(2):
        process = start(*words, PYTHONPATH=f"{REPOSITORY}/src:{REPOSITORY}")
        said.append(process.communicate(timeout=900)[0])
        assert process.returncode == 1
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["overrides"] for row in rows if row["status"] == "failed"] == [
        "method=simpo optimizer.lr=0.0003 seed=2"
    ]
    assert [row["status"][:4] for row in rows].count("done") == 11 and said[1].count("done before") == 11
    assert alignlab("report", folder, f"to={out}") == 0
    dom, console = in_browser(out / "report.html")
    table = dom[dom.index('id="runs"') : dom.index('id="unfinished"')]
    assert not console and sorted(re.findall(r'class="status (\w+)"', table)) == ["done"] * 11 + ["failed"]
    assert "11 of 12 runs done" in dom and "RuntimeError: the disk of this job is gone" in dom
