"""What cannot be saved is refused before training, and what can be saved is not refused after it."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.callbacks import export_trial
from alignlab.models import export
from tests.commands import QUIET, alignlab, metrics, summary

POCKET = Path(export.__file__).parents[1] / "assets" / "pocket"
SHORT = ["trainer.max_steps=2", "data.global_batch_size=4", "data.validation_size=null", *QUIET]


@pytest.fixture
def base(tmp_path):
    """A copy of the embedded model with a generation config that Transformers refuses to save once it is changed."""
    AutoModelForCausalLM.from_pretrained(POCKET).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(POCKET).save_pretrained(tmp_path / "base")
    sampling = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(sampling))
    return tmp_path / "base"


@pytest.mark.parametrize("peft", ["none", "lora"])
@pytest.mark.parametrize("largest", [export_trial.LARGEST, 10], ids=["small", "large"])
def test_a_generation_config_with_values_of_no_effect_is_saved_as_it_was(base, tmp_path, monkeypatch, peft, largest):
    monkeypatch.setattr(export_trial, "LARGEST", largest)
    run = tmp_path / "run"
    assert alignlab("train", *SHORT, f"model.path={base}", f"peft={peft}", f"run_dir={run}") == 0
    saved = json.loads((run / "model" / "generation_config.json").read_text())
    assert {"do_sample": False, "temperature": 0.9, "top_p": 0.6}.items() <= saved.items()
    assert saved["eos_token_id"]
    assert not list(run.glob(".model*")) and summary(run)["status"] == "done"


@pytest.mark.parametrize("largest", [export_trial.LARGEST, 10], ids=["small", "large"])
def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path, monkeypatch, capsys, largest):
    def refuse(*args):
        raise ValueError("this cannot be saved")

    monkeypatch.setattr(export_trial, "LARGEST", largest)
    monkeypatch.setattr(export, "write_generation", refuse)
    run = tmp_path / "run"
    assert alignlab("train", *SHORT, f"run_dir={run}") == 2
    refusal = capsys.readouterr().err
    assert "tried before training: this cannot be saved" in refusal and "Traceback" not in refusal
    assert not (run / "metrics.csv").exists() or not metrics(run)
    assert not list(run.glob(".model*"))


def test_the_trial_changes_no_number_of_the_training(tmp_path, monkeypatch):
    words = [*SHORT, "peft=lora", "peft.lora_dropout=0.5"]
    assert alignlab("train", *words, f"run_dir={tmp_path / 'tried'}") == 0
    monkeypatch.setattr(export_trial.ExportTrial, "on_fit_start", lambda *args: None)
    assert alignlab("train", *words, f"run_dir={tmp_path / 'not'}") == 0
    losses = [[row["train/loss"] for row in metrics(tmp_path / name)] for name in ("tried", "not")]
    assert losses[0] == losses[1]
