"""Curves from metrics.csv."""

import math

import pytest

from alignlab.run_folder import plots
from alignlab.run_folder.metrics_file import MetricsFile


@pytest.fixture
def metrics(tmp_path):
    """A run of 60 steps with a validation every 20."""
    file = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    for step in range(60):
        file.log_metrics({"train/loss": 1 + math.exp(-step / 20) + 0.1 * (step % 2), "train/lr": 1e-3}, step=step)
        if step % 20 == 19:
            file.log_metrics({"val/loss": 1.2, "val/exact_match": step / 80}, step=step)
    return file.path


def test_draws_what_was_logged_and_nothing_else(tmp_path, metrics):
    written = plots.draw(metrics, tmp_path / "plots", {**plots.CURVES, "margins": ("rewards/margins",)})
    assert {path.name for path in written} == {"loss.png", "exact_match.png", "learning_rate.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert plots.draw(tmp_path / "absent.csv", tmp_path / "none") == []


def test_a_figure_says_what_it_shows(metrics):
    rows = plots.read_metrics(metrics)
    axes = plots.figure({name: plots._points(rows, name) for name in ("train/loss", "val/loss")}).axes[0]
    assert axes.get_title(loc="left").startswith("the objective of this optimizer step")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer steps", "nats")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train/loss", "val/loss"]
    raw, smoothed, validation = axes.get_lines()
    assert len(raw.get_xdata()) == len(smoothed.get_xdata()) == 60
    assert list(validation.get_xdata()) == [20, 40, 60]


def test_smoothing_by_hand():
    """A window of 3 in 5 values: the first alone, each with its neighbours, the last with the one before."""
    assert plots.smooth([1.0, 3.0, 5.0, 10.0, 6.0], share=0.4) == [1, 3, 6, 7, 8]
    assert plots.smooth([1.0, 3.0], share=0.0) == [1, 3]


def test_values_that_are_not_finite_leave_a_gap(tmp_path):
    file = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    for step, value in enumerate([1.0, math.nan, math.inf, 2.0]):
        file.log_metrics({"train/loss": value}, step=step)
    assert plots._points(plots.read_metrics(file.path), "train/loss") == [(1, 1), (4, 2)]
