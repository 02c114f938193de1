"""What differs between runs, how settings are ranked over seeds, and curves with their spread."""

import math
from pathlib import Path

import pytest

from alignlab.errors import InputError
from alignlab.report.records import Record, read_records
from alignlab.report.results import curve, rank, ranking_metric
from alignlab.report.settings import MISSING, cell, differing, labels, pooled
from alignlab.report.table import print_ranking
from tests.report.runs import write_job, write_run


@pytest.fixture
def records(tmp_path):
    """Two methods with two seeds each, and a job that was refused."""
    results = {("dpo", 1): (0.7, 0.5), ("dpo", 2): (0.7, 0.6), ("simpo", 1): (0.9, 0.4), ("simpo", 2): (0.9, 0.3)}
    for (method, seed), losses in results.items():
        write_run(tmp_path / f"{method}{seed}", method=method, seed=seed, losses=losses)
    write_job(tmp_path, 9, "method=simpo seed=3 optimizer.lr=bad")
    return read_records([tmp_path])


def test_settings_that_differ(records):
    columns = differing(records)
    assert list(columns) == ["method", "method.beta", "optimizer.lr", "seed"]
    assert columns["method"] == ["dpo", "dpo", "simpo", "simpo", "simpo"]
    assert columns["method.beta"] == [0.1, 0.1, 2.0, 2.0, MISSING]


def test_a_setting_that_follows_from_another_is_not_in_the_label(records):
    found = labels(differing(records), len(records))
    assert found == ["method=dpo optimizer.lr=0.0001"] * 2 + ["method=simpo optimizer.lr=0.0001"] * 2 + [
        "method=simpo optimizer.lr=bad"
    ]


def test_settings_are_ranked_with_differences_seed_by_seed(records):
    best, second, last = rank(pooled(records, differing(records)), "val/loss", "min")
    assert best.label == "method=simpo optimizer.lr=0.0001" and best.mean == pytest.approx(0.35)
    assert best.std == pytest.approx(math.sqrt(0.005)) and math.isnan(best.difference)
    # Seed 1: 0.5 - 0.4; seed 2: 0.6 - 0.3. Standard error: std(0.1, 0.3) / sqrt(2).
    assert (second.difference, second.error, second.num_pairs) == (pytest.approx(0.2), pytest.approx(0.1), 2)
    assert math.isnan(last.mean) and last.num_pairs == 0
    assert rank(pooled(records, differing(records)), "val/loss", "max")[0].label == "method=dpo optimizer.lr=0.0001"


def test_an_unfinished_run_of_a_seed_hides_no_finished_one(tmp_path):
    write_run(tmp_path / "a", losses=(0.7, 0.5))
    write_run(tmp_path / "b", status="failed")
    (one,) = rank(pooled(found := read_records([tmp_path]), differing(found)), "val/loss", "min")
    assert one.values == {"1": 0.5} and len(one.records) == 2


def test_a_run_that_failed_on_the_way_does_not_replace_the_one_that_is_done():
    runs = [
        Record(status, Path(), status, {"seed": 1}, {"metrics": {"val/loss": loss}})
        for status, loss in (("done", 0.5), ("failed", 0.9))
    ]
    assert [rank({"": order}, "val/loss", "min")[0].mean for order in (runs, runs[::-1])] == [0.5, 0.5]


def test_a_curve_has_the_range_over_runs(records):
    drawn = curve(records[:2], "val/loss")
    assert (drawn.steps, drawn.mean[1]) == ([0.0, 1.0], pytest.approx(0.55))
    assert (drawn.low, drawn.high) == ([0.7, 0.5], [0.7, 0.6])


def test_the_metric_that_ranks(records):
    assert ranking_metric(records, None) == ("val/loss", "min")
    with pytest.raises(InputError, match="val/loss"):
        ranking_metric(records, "val/los")
    records[0].metrics["val/pass@8"] = 0.5
    assert ranking_metric(records, "val/pass@8") == ("val/pass@8", "max")


@pytest.mark.parametrize(("value", "text"), [(None, "null"), (True, "true"), (1e-4, "0.0001"), (MISSING, ""), (1, "1")])
def test_cells_are_what_one_types(value, text):
    assert cell(value) == text


def test_how_a_run_was_started_is_no_setting(tmp_path):
    write_run(tmp_path / "a", overwrite=False, objective="val/loss")
    write_run(tmp_path / "b", overwrite=True, objective="val/nll", lr=2e-4)
    assert list(differing(read_records([tmp_path]))) == ["optimizer.lr"]


def test_a_run_that_is_done_without_the_metric_is_not_called_unfinished(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", status="failed", lr=2e-4)
    ranking = rank(pooled(found := read_records([tmp_path]), differing(found)), "val/nll", "min")
    print_ranking(ranking, "val/nll")
    lines = capsys.readouterr().out.splitlines()
    assert sorted(("not measured" in line, "not done" in line) for line in lines[2:4]) == [(False, True), (True, False)]
