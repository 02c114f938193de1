"""A W&B workspace for some runs, read back by W&B's own classes."""

import json

from alignlab.report.dashboard import sections
from tests.commands import alignlab
from tests.report.runs import write_run

FEW = ["trainer.max_steps=1", "data.source.num_train=16", "data.source.num_validation=4", "data.global_batch_size=8"]


def test_every_metric_is_in_one_section():
    names = ["val/loss", "val/nll", "train/lr", "rewards/margins", "reward/mean", "reward/exact_answer", "ratio"]
    assert sections([*names, "progress/step", "time/rollout", "mine"]) == {
        "results": ["reward/mean", "val/loss"],
        "validation": ["val/nll"],
        "training": ["train/lr"],
        "comparisons": ["rewards/margins"],
        "rewards and completions": ["reward/exact_answer"],
        "policy": ["ratio"],
        "time": ["time/rollout"],
        "further": ["mine"],
    }


def test_a_workspace_has_the_curves_that_a_run_has_logged_offline(tmp_path, monkeypatch, capsys):
    """The run is real, its W&B run is kept offline, and the file is read by W&B's class of workspaces."""
    from wandb_workspaces.workspaces import internal

    monkeypatch.chdir(tmp_path)
    assert alignlab("train", *FEW, "logger.wandb.project=mine", "callbacks.exact_match=null", "run_dir=run") == 0
    assert alignlab("dashboard", "run", "to=board.json") == 0
    said = capsys.readouterr().out
    assert "upload        wandb sync run/wandb/offline-run-" in said  # on the card of the run
    assert f"wandb sync {tmp_path.resolve() / 'run' / 'wandb' / 'offline-run-'}" in said  # by the dashboard
    view = internal.View.model_validate(json.loads((tmp_path / "board.json").read_text()))
    assert view.project == "mine"
    bank = view.spec.section.panel_bank_config
    shown = {panel.config.metrics[0] for section in bank.sections for panel in section.panels}
    head = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert shown == {*head} - {"progress/step"} and bank.sections[0].name == "results" and bank.sections[0].is_open
    assert all(panel.config.x_axis == "progress/step" for section in bank.sections for panel in section.panels)


def test_what_cannot_be_shown_is_refused(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, seed=1, logger={"wandb": {"project": name, "entity": None}})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "board.json").write_text("mine")
    for words, why in (
        (["runs"], "in several projects: a, b. Type project=NAME"),
        (["runs/a", "to=board.json"], "it exists"),
        (["runs/a"], "nobody is logged in at W&B here. Type wandb login, or to=dashboard.json"),
        (["gone"], "there is no such folder"),
    ):
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        assert alignlab("dashboard", *words) == 2
        assert why in capsys.readouterr().err
    assert (tmp_path / "board.json").read_text() == "mine"
