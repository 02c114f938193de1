"""CPO as a method: DPO's loss without a reference, and likelihood of the chosen."""

import functools

import pytest

from alignlab.errors import InputError
from alignlab.losses.preference import aot_unpaired
from tests.methods.slow import first_step, imitation, pairs, softplus
from tests.methods.toy import METHODS, make_method


def test_the_loss_is_that_of_pairs_without_a_reference_and_imitation():
    """Mean of -log σ(0.5 (log π(chosen) - log π(rejected))), + L_SFT."""
    losses = [softplus(-0.5 * (chosen - rejected)) for (chosen, _), (rejected, _) in pairs("cpo")]
    expected = sum(losses) / len(losses) + imitation("cpo")
    assert first_step("cpo")["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_pairs_of_a_loss_that_sorts_over_them_are_not_weighed():
    factories, sorting = (
        make_method("cpo").factories,
        {"aot_unpaired": functools.partial(aot_unpaired, label_smoothing=0)},
    )
    METHODS["cpo"](loss=sorting, factories=factories)
    with pytest.raises(InputError, match="aot_unpaired sorts over pairs"):
        METHODS["cpo"](loss=sorting, weight_column="worth", factories=factories)
