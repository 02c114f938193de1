"""Every trainable tensor must have a gradient in one of the first steps, not in the very first."""

import pytest

from alignlab.methods import base
from tests.commands import QUIET, alignlab, metrics

SHORT = ["data.global_batch_size=4", "data.validation_size=null", "trainer.max_steps=6", *QUIET]
OTHER = ["peft=ia3", "~peft.feedforward_modules"]


@pytest.mark.parametrize("kind", ["LoHaConfig", "VeraConfig"])
def test_adapters_with_gates_of_any_name_train(kind, tmp_path):
    assert alignlab("train", *SHORT, *OTHER, f"peft._target_=peft.{kind}", f"run_dir={tmp_path}") == 0


def test_trained_tokens_that_no_row_holds_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "zero_gradients", lambda *args: ["embed_tokens.trainable_tokens_delta.default"])
    assert alignlab("train", *SHORT, f"run_dir={tmp_path}") == 0
    assert "hold none of the tokens" in (tmp_path / "train.log").read_text()


def test_a_tensor_without_gradient_ends_the_run_after_the_first_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base, "zero_gradients", lambda *args: ["lm_head.weight"])
    assert alignlab("train", *SHORT, f"run_dir={tmp_path}") == 2
    assert "in the first 5 steps 1 of them have no gradient: lm_head.weight" in capsys.readouterr().err
    assert len(metrics(tmp_path)) == 4
