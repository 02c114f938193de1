"""What is shown while training runs."""

import sys

import pytest

from alignlab.callbacks import progress
from alignlab.run_folder.log import captured
from tests.callbacks.toy import Toy, make_trainer, train


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3600, "1:00:00"), (7265, "2:01:05")])
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (950, "950"), (15_234, "15.2k"), (1.2e6, "1.2M"), (7e9, "7G")]
)
def test_short_number(value, text):
    assert progress.short_number(value) == text


def test_lines():
    metrics = {"train/loss": 0.81234, "train/tokens_per_second": 15_234.0, "val/loss": 0.4, "val/exact_match": 0.9134}
    state = progress.status(metrics, 120, 1000, 65.0)
    assert progress.progress_line(120, 1000, state) == "step 120/1,000 · loss 0.8123 · 15.2k tokens/s · 1:05 left"
    assert progress.progress_line(120, float("inf"), "") == "step 120"
    assert progress.status({}, 5, float("inf"), None) == ""
    assert progress.result_line("step 200", metrics) == "step 200 · val/exact_match 0.9134 · val/loss 0.4"


def run(folder, every_n_seconds):
    train(folder, 8, callbacks=[progress.ProgressLine(every_n_seconds=every_n_seconds)], enable_progress_bar=True)


def test_without_a_terminal_lines_are_few(tmp_path, capsys):
    run(tmp_path, every_n_seconds=1000)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split(" · ")[0] for line in lines] == ["before training", "step 4", "step 8", "step 8/8"]
    assert all("val/loss" in line for line in lines[:3])
    assert "loss" in lines[3] and "1k tokens/s" in lines[3]


def test_without_a_terminal_a_line_comes_every_n_seconds(tmp_path, capsys):
    run(tmp_path, every_n_seconds=1e-9)
    assert sum(line.startswith("step 3/8 · loss") for line in capsys.readouterr().out.splitlines()) == 1


def test_on_a_terminal_a_bar_is_drawn_that_the_log_does_not_hold(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FRAME_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with captured(tmp_path / "train.log"):
        run(tmp_path, every_n_seconds=1000)
    assert "━" in capsys.readouterr().err
    log = (tmp_path / "train.log").read_text().splitlines()
    assert not [line for line in log if "━" in line]
    assert [line for line in log if line.startswith("step 4 · val/loss")]


def test_other_ranks_show_nothing(tmp_path, capsys):
    bar = progress.ProgressLine(every_n_seconds=1e-9)
    bar.disable()
    bar.on_train_start(make_trainer(tmp_path), Toy())
    bar.on_train_batch_end(make_trainer(tmp_path), Toy(), None, None, 0)
    bar.print("hello")
    assert capsys.readouterr().out == ""
