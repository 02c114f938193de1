"""DPO as a method: each chosen completion against each of its rejected ones, and a reference that differs."""

import dataclasses
import functools

import pytest

from alignlab.errors import InputError
from alignlab.losses.preference import aot
from tests.methods.slow import first_step, make_other, pairs, softplus
from tests.methods.toy import METHODS, make_method


def against_another(name):
    """The method with a reference that differs from the policy."""
    factories = dataclasses.replace(make_method(name, lr=0.0).factories, open_model=make_other)
    return METHODS[name](reference="somewhere", factories=factories)


def test_the_loss_is_the_mean_over_all_pairs_of_the_step():
    """-log σ(0.5 ((log π - log π_ref)(chosen) - (log π - log π_ref)(rejected)))."""
    ratios = [
        (chosen - far_chosen, rejected - far_rejected)
        for ((chosen, _), (rejected, _)), ((far_chosen, _), (far_rejected, _)) in zip(
            pairs("dpo"), pairs("dpo", make_other), strict=True
        )
    ]
    losses = [softplus(-0.5 * (chosen - rejected)) for chosen, rejected in ratios]
    step = first_step("dpo", against_another("dpo"))
    assert step["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    won = [chosen > rejected for chosen, rejected in ratios]
    assert step["rewards/accuracies"] == pytest.approx(sum(won) / len(won)) and 0 < sum(won) < len(won)


@pytest.mark.parametrize("changes", [{"weighting": "wpo"}, {"weight_column": "worth"}], ids=str)
def test_pairs_of_a_loss_that_sorts_over_them_are_not_weighed(changes):
    """They can be trained on without weights, and other losses with them."""
    factories, sorting = make_method("dpo").factories, {"aot": functools.partial(aot, label_smoothing=0.0)}
    METHODS["dpo"](loss=sorting, factories=factories)
    METHODS["dpo"](**changes, factories=factories)
    with pytest.raises(InputError, match="aot sorts over pairs"):
        METHODS["dpo"](loss=sorting, **changes, factories=factories)
