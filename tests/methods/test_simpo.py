"""SimPO as a method: log-probabilities per token, a margin, and a little imitation."""

import pytest

from tests.methods.slow import first_step, imitation, pairs, softplus


def test_the_loss_is_that_of_means_per_token_with_a_margin():
    """Mean of -log σ(2 (mean log π(chosen) - mean log π(rejected)) - 0.5), + 0.1 L_SFT."""
    losses = [softplus(0.5 - 2 * (c / n - r / m)) for (c, n), (r, m) in pairs("simpo")]
    expected = sum(losses) / len(losses) + 0.1 * imitation("simpo")
    assert first_step("simpo")["train/loss"] == pytest.approx(expected, rel=1e-5)
