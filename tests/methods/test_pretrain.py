"""Pretraining as a method: the mean over all tokens of the step."""

import pytest

from tests.methods.slow import completions, first_step


def test_the_loss_is_the_mean_over_all_tokens_of_the_step():
    rows = [found for (found,) in completions("pretrain")]
    expected = -sum(logp for logp, _ in rows) / sum(count for _, count in rows)
    assert first_step("pretrain")["train/loss"] == pytest.approx(expected, rel=1e-5)
