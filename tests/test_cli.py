"""The command line: verbs, help, refusals and exit codes, sweeps, and repeating a run."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from alignlab import run
from alignlab.cli.composition.compose import ROOT
from alignlab.cli.main import main
from alignlab.errors import InputError


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """Run in an empty folder, with training replaced by a note of what it was asked to do."""
    made = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "fit", made.append)
    return made


def test_train_composes_and_runs_one_job_and_leaves_nothing_behind(jobs, tmp_path):
    assert main(["train", "optimizer.lr=0.5"]) == 0
    assert [cfg.optimizer.lr for cfg in jobs] == [0.5]
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_one_paragraph_and_exit_code_2(jobs, capsys):
    assert main(["train", "optimizer.lrr=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and jobs == []
    assert captured.err.count("\n") == 1 and "'optimizer.lr'" in captured.err and "Traceback" not in captured.err


def test_a_refusal_by_the_run_itself_is_printed_alike(jobs, monkeypatch, capsys):
    def fit(cfg):
        raise InputError("data.path=x", "there is no such file", "Type data.path=FILE")

    monkeypatch.setattr(run, "fit", fit)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == "Refused. data.path=x: there is no such file. Type data.path=FILE.\n"


def test_debug_shows_the_traceback_of_a_refusal(jobs):
    with pytest.raises(InputError):
        main(["train", "debug=true", "optimizer.lrr=1"])


def test_any_other_error_keeps_its_traceback(jobs, monkeypatch):
    def fit(cfg):
        raise RuntimeError("a bug")

    monkeypatch.setattr(run, "fit", fit)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train"])


def test_a_stop_passes_its_exit_code(jobs, monkeypatch):
    def fit(cfg):
        raise SystemExit(143)

    monkeypatch.setattr(run, "fit", fit)
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 143


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "'train'"),
        (["train", "--multirunn"], "'--multirun'"),
        (["train", "optimizer"], "optimizer=VALUE"),
        (["train", "tags=[a"], "cannot be read"),
        (["train", "--config-dir", "nowhere"], "nowhere"),
        (["train", "--cfg", "job", "optimizer.lrr=1"], "'optimizer.lr'"),
        (["train", "seed=1,2"], "multirun"),
        (["train", "--from", "nowhere"], "config.yaml"),
        (["train", "--from"], "config.yaml"),
    ],
)
def test_faults_of_the_command_line_are_refused(jobs, capsys, words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err and jobs == []


def test_a_sweep_runs_every_combination_and_goes_on_after_a_refused_job(jobs, capsys):
    assert main(["train", "-m", "optimizer.lr=0.1,-1,0.2", "run_dir=mine"]) == 2
    assert [(cfg.optimizer.lr, cfg.run_dir) for cfg in jobs] == [(0.1, "mine/0"), (0.2, "mine/2")]
    assert "optimizer.lr=-1" in capsys.readouterr().err


def test_a_named_sweep_needs_no_flag(jobs):
    assert main(["train", "sweeps=learning_rate"]) == 0
    assert len(jobs) == 6 and {cfg.run_dir for cfg in jobs} == {None}


def test_from_repeats_a_run_with_changes(jobs, tmp_path):
    main(["train", "peft=lora", "seed=7"])
    (tmp_path / "old").mkdir()
    OmegaConf.save(OmegaConf.merge(jobs[0], {"run_dir": "old"}), tmp_path / "old" / "config.yaml", resolve=True)
    assert main(["train", "--from", "old", "optimizer.lr=0.25"]) == 0
    again = jobs[1]
    assert (again.seed, again.peft.r, again.optimizer.lr, again.run_dir) == (7, 16, 0.25, None)
    assert main(["train", "--from=old", "optimizer.lrr=1"]) == 2


def test_an_option_cannot_be_chosen_for_a_repeated_run(jobs, tmp_path, capsys):
    main(["train"])
    OmegaConf.save(jobs[0], tmp_path / "config.yaml", resolve=True)
    assert main(["train", "--from", str(tmp_path), "optimizer=sgd"]) == 2
    assert "Change single keys: optimizer.NAME=VALUE" in capsys.readouterr().err


def test_help_is_short_and_lists_groups_and_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and len(text.splitlines()) < 60
    for word in ("peft: dora", "sweeps: learning_rate", "optimizer.lr", "data.path", "--from", "--cfg job"):
        assert word in text
    assert "tests" not in text


def test_help_lists_the_verbs(capsys):
    assert main([]) == 0
    assert "alignlab train" in capsys.readouterr().out


def test_cfg_prints_the_config(jobs, capsys):
    assert main(["train", "--cfg", "job", "peft=lora"]) == 0
    assert "lora_alpha: 32" in capsys.readouterr().out and jobs == []


def test_the_door_at_the_root_exits_with_the_code(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "model=pockt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("Refused. model=pockt: ") and done.stdout == ""
