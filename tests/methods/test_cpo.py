"""CPO as a method: DPO's loss without a reference, and likelihood of the chosen."""

import pytest

from tests.methods.slow import first_step, imitation, pairs, softplus


def test_the_loss_is_that_of_pairs_without_a_reference_and_imitation():
    """Mean of -log σ(0.5 (log π(chosen) - log π(rejected))), + L_SFT."""
    losses = [softplus(-0.5 * (chosen - rejected)) for (chosen, _), (rejected, _) in pairs("cpo")]
    expected = sum(losses) / len(losses) + imitation("cpo")
    assert first_step("cpo")["train/loss"] == pytest.approx(expected, rel=1e-5)
