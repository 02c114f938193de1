"""ORPO as a method: likelihood of the chosen, and the odds ratio of every pair."""

import math

import pytest

from tests.methods.slow import first_step, imitation, pairs, softplus


def log_odds(completion):
    """Of the mean probability per token: log p - log (1 - p)."""
    logp, count = completion
    return logp / count - math.log1p(-math.exp(logp / count))


def test_the_loss_is_imitation_and_the_odds_ratio():
    """L_SFT + 0.5 · mean of -log σ(log odds of the chosen - log odds of the rejected)."""
    ratios = [softplus(log_odds(rejected) - log_odds(chosen)) for chosen, rejected in pairs("orpo")]
    expected = imitation("orpo") + 0.5 * sum(ratios) / len(ratios)
    assert first_step("orpo")["train/loss"] == pytest.approx(expected, rel=1e-5)
