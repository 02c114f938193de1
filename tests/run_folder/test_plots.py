"""Curves from metrics.csv."""

import math

import pytest

from alignlab.metrics import METRICS, Metric, check_names
from alignlab.run_folder import plots
from alignlab.run_folder.metrics_file import MetricsFile
from tests.commands import REPOSITORY


@pytest.fixture
def metrics(tmp_path):
    """A run of 60 steps with a validation every 20."""
    file = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    for step in range(60):
        file.log_metrics({"train/loss": 1 + math.exp(-step / 20) + 0.1 * (step % 2), "train/lr": 1e-3}, step=step)
        if step % 20 == 19:
            file.log_metrics({"val/loss": 1.2, "val/exact_match": step / 80}, step=step)
    return file.path


def draw(metrics, folder, **own):
    return {path.name: path for path in plots.draw(metrics, folder, title="run · dpo · pocket", own_metrics=own)}


def test_draws_what_was_logged_and_nothing_else(tmp_path, metrics):
    written = draw(metrics, tmp_path / "plots")
    assert set(written) == {"loss.png", "exact_match.png", "learning_rate.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.values())
    assert draw(tmp_path / "absent.csv", tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("logged", "figures"),
    [
        (["rewards/chosen", "val/rewards/margins", "rewards/accuracies"], {"rewards", "margins", "accuracies"}),
        (["reward/mean", "train/kl", "train/entropy", "completion_tokens/mean", "truncated_fraction"],
         {"reward", "kl", "entropy", "completion_tokens", "truncated"}),
        (["val/confidence"], {"confidence"}),
    ],
)  # fmt: skip
def test_a_method_has_figures_of_its_own(tmp_path, logged, figures):
    file = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    for step in range(3):
        file.log_metrics(dict.fromkeys(logged, 0.5), step=step)
    assert set(draw(file.path, tmp_path, confidence=Metric("1", "of its own"))) == {f"{name}.png" for name in figures}


def test_every_figure_is_of_metrics_that_exist():
    check_names(name for names in plots.CURVES.values() for name in names)


def test_rewards_share_a_figure_by_their_names():
    assert plots._each_reward(["reward/mean", "reward/std", "reward/length", "reward/length_std"]) == ["reward/length"]


def test_a_figure_says_what_it_shows(metrics):
    rows = plots.read_metrics(metrics)
    series = {name: plots._points(rows, name) for name in ("train/loss", "val/loss")}
    made = plots.figure(series, title="run · dpo · pocket", known=METRICS)
    (axes,) = made.axes
    assert [text.get_text() for text in made.texts] == ["run · dpo · pocket"]
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


def test_the_docs_name_every_figure():
    page = (REPOSITORY / "docs" / "curves.md").read_text(encoding="utf-8")
    table = page.partition("## Plots")[2].partition("\n## ")[0]
    assert [name for name in plots.CURVES if f"`{name}`" not in table] == []
