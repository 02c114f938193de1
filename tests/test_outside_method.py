"""A method from outside the package, with a config folder of its own, needs no edit here."""

import textwrap

from tests.commands import QUIET, alignlab, metrics, summary

METHOD = '''
"""Supervised fine-tuning with a penalty on confidence (arXiv 1701.06548)."""

from typing import Annotated

from pydantic import Field

from alignlab.losses.sft import token_metrics
from alignlab.methods.base import Factories, Method
from alignlab.models.scoring import token_scores
from alignlab.types.batch import MicroBatch
from alignlab.types.loss import LossOutput, LossTerm
from alignlab.types.rows import Demonstration


class Confident(Method):
    """SFT whose loss is scaled.

    Args:
        strength: Factor of the loss.
        factories: See ``Method``.
    """

    row_kind = Demonstration

    def __init__(self, *, strength: Annotated[float, Field(gt=0)], factories: Factories):
        super().__init__(factories=factories)
        self.strength = strength

    def compute_loss(self, batch: MicroBatch) -> LossOutput:
        """Scaled negative log-likelihood."""
        scores = token_scores(self.policy, batch)
        term = LossTerm(-self.strength * scores.logps, "supervised_tokens")
        return LossOutput([term], token_metrics(scores.logps, scores.argmax_correct))
'''


def lab(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(METHOD)
    (tmp_path / "conf" / "method").mkdir(parents=True)
    config = "_target_: elsewhere.Confident\nstrength: 2.0\n"
    (tmp_path / "conf" / "method" / "confident.yaml").write_text(textwrap.dedent(config))
    monkeypatch.syspath_prepend(str(tmp_path))
    return ["--config-dir", tmp_path / "conf", "method=confident", *QUIET, "trainer.max_steps=2"]


def test_a_method_from_outside_trains(tmp_path, monkeypatch):
    words = lab(tmp_path, monkeypatch)
    assert alignlab("train", *words, f"run_dir={tmp_path / 'run'}", "data.source.num_train=64") == 0
    first = metrics(tmp_path / "run")[0]
    assert abs(first["train/loss"] - 2 * first["train/nll"]) < 1e-5
    assert summary(tmp_path / "run")["method"] == "confident"


def test_its_hyperparameters_are_checked_like_ours(tmp_path, monkeypatch, capsys):
    words = lab(tmp_path, monkeypatch)
    assert alignlab("train", *words, "method.strenth=1", "method.strength=-1") == 2
    refusal = capsys.readouterr().err
    assert "strenth" in refusal and "Did you mean" in refusal
    assert "greater than 0" in refusal or "> 0" in refusal
