"""Group DPO as a method: the chosen completion against the hardest of its rejected ones."""

import dataclasses

import pytest

from tests.methods.slow import completions, first_step, make_other
from tests.methods.toy import METHODS, make_method


def against_another(name):
    """The method with a reference that differs from the policy."""
    factories = dataclasses.replace(make_method(name, lr=0.0).factories, open_model=make_other)
    return METHODS[name](reference="somewhere", factories=factories)


def test_the_loss_is_the_mean_over_groups_of_the_hinge_on_the_hardest():
    """max(0, max over the rejected of r - r(chosen) + 1), with r = 0.5 (log π - log π_ref)."""
    losses, hardest = [], set()
    for ours, theirs in zip(completions("group_dpo"), completions("group_dpo", make_other), strict=True):
        chosen, *rejected = (0.5 * (one - other) for (one, _), (other, _) in zip(ours, theirs, strict=True))
        hardest.add(rejected.index(max(rejected)))
        losses.append(max(0.0, max(rejected) - chosen + 1.0))
    step = first_step("group_dpo", against_another("group_dpo"))
    assert step["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert len(hardest) > 1, "the first is not always the hardest"
