"""What is shown while training runs."""

import sys
from types import SimpleNamespace

import pytest
import torch

from alignlab.callbacks import progress
from alignlab.callbacks.held_out_samples import HeldOutSamples
from alignlab.rollout.sampler.base import SamplingProgress
from alignlab.run_folder.log import captured
from tests.callbacks.toy import Toy, make_trainer, train
from tests.methods.prompts import as_rows, make_sampler, make_tokenizer
from tests.methods.toy import make_policy


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


def test_methods_with_rewards_show_them():
    """Between two rollouts the last values hold; a single completion has no spread."""
    metrics = {"train/loss": 1e-9, "reward/mean": 0.51234, "reward/std": 0.4999, "train/tokens_per_second": 950.0}
    assert progress.status(metrics, 3, 9, None) == "loss 1e-09 · reward 0.5123 ± 0.5 · 950 tokens/s"
    del metrics["reward/std"]
    assert progress.status(metrics, 3, 9, None) == "loss 1e-09 · reward 0.5123 · 950 tokens/s"


# --- sampling ---------------------------------------------------------------------------------------------------------


def sampled(ended, seconds, max_tokens=105_000):
    counts = {"num_ended": ended, "num_completions": 768, "num_tokens": 210 * seconds, "max_tokens": max_tokens}
    return SamplingProgress(**counts, seconds=float(seconds))


@pytest.mark.parametrize(
    ("ended", "seconds", "text"),
    [
        (0, 100, "rollout: 0/768 completions · 210 tokens/s · 6:40 left"),
        (1, 100, "rollout: 1/768 completions · 210 tokens/s · 6:40 left"),
        (192, 100, "rollout: 192/768 completions · 210 tokens/s · 5:00 left"),
        (768, 400, "rollout: 768/768 completions · 210 tokens/s"),
        (0, 0, "rollout: 0/768 completions"),
    ],
)
def test_what_is_said_of_a_rollout(ended, seconds, text):
    assert progress.sampling_state("rollout", sampled(ended, seconds)) == text


def shown_of(seconds, capsys, tmp_path):
    """What the progress of a sampler prints, which reports at these seconds."""
    line, trainer = progress.ProgressLine(every_n_seconds=10), make_trainer(tmp_path)
    for second in seconds:
        line.show_sampling(trainer, "rollout", sampled(second, second))
    line._clear()
    return capsys.readouterr()


def test_a_long_rollout_prints_few_lines_and_a_short_one_none(tmp_path, capsys):
    """Two long rollouts, then a short one: lines after 30 s, 1, 2, 4, … minutes."""
    seconds = [*range(500), *range(70), *range(29)]
    lines = shown_of(seconds, capsys, tmp_path).out.splitlines()
    assert [int(line.split("/")[0].removeprefix("rollout: ")) for line in lines] == [30, 60, 120, 240, 480, 30, 60]


def test_a_rollout_whose_first_report_is_late_prints_it(tmp_path, capsys):
    assert len(shown_of([300, 250], capsys, tmp_path).out.splitlines()) == 2


def test_on_a_terminal_the_bar_shows_a_rollout_that_takes_a_while(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FRAME_SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    short, long = shown_of([0, 1], capsys, tmp_path), shown_of([0, 3], capsys, tmp_path)
    assert (short.out, short.err, long.out) == ("", "", "")
    assert "3/768" in long.err


@pytest.mark.parametrize("enabled", [True, False])
def test_the_samplers_of_a_run_are_shown(enabled, tmp_path, monkeypatch, capsys):
    """Those of the rollouts and of the validations, by the first rank alone."""
    monkeypatch.setattr(progress.DoublingInterval, "is_due", lambda self, seconds: True)
    held_out = HeldOutSamples(num_prompts=1, num_completions=1, k=[], pass_reward=None, sampler=make_sampler())
    method, line = (
        SimpleNamespace(rollout=SimpleNamespace(sampler=make_sampler())),
        progress.ProgressLine(every_n_seconds=1),
    )
    line.on_fit_start(make_trainer(tmp_path, callbacks=[held_out]), method)
    if not enabled:
        line.disable()
    for sampler in (method.rollout.sampler, held_out.sampler):
        draw = {"num_completions": 2, "stop_tokens": [63], "tokenizer": make_tokenizer()}
        sampler(make_policy(), as_rows([[5, 6]]), **draw, generator=[torch.Generator()])
    ends = [line.split(" · ")[0] for line in capsys.readouterr().out.splitlines() if "2/2" in line]
    assert ends == (["rollout: 2/2 completions", "validation: 2/2 completions"] if enabled else [])


# --- runs -------------------------------------------------------------------------------------------------------------


def run(folder, every_n_seconds):
    train(folder, 8, callbacks=[progress.ProgressLine(every_n_seconds=every_n_seconds)], enable_progress_bar=True)


def test_a_line_is_broken_between_its_parts():
    line = "step 200 · val/exact_match 0.9134 · val/loss 0.4"
    assert progress.folded(line, 60) == line
    assert progress.folded(line, 40) == "step 200 · val/exact_match 0.9134\n  val/loss 0.4"
    assert progress.folded(line, 10) == "step 200\n  val/exact_match 0.9134\n  val/loss 0.4"


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
