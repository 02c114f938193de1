"""Group DPO as a method: the chosen completion against the hardest of its rejected ones."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from alignlab.losses.group import Groups
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


def test_a_row_has_changed_where_another_completion_is_its_hardest():
    """Of rows 7, 8 and 9 the hardest moves up, moves down and stays; row 10 was not seen before."""
    method, ids = make_method("group_dpo"), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])

    def changes(rows, *hardest):
        rewards = [float(place == index) for index in hardest for place in range(-1, 2)]
        batch = SimpleNamespace(columns={"row": torch.tensor(rows).repeat_interleave(3)}, group_ids=ids)
        ratio = method._changes(batch, Groups(torch.tensor(rewards), ids))["group/hardest_changed"]
        return ratio.sum.item(), ratio.weight.item()

    assert changes([7, 8, 9], 0, 1, 1) == (0, 0)
    assert changes([7, 8, 9], 1, 0, 1) == (2, 3)
    assert changes([10, 8, 9], 0, 0, 0) == (1, 2)


@pytest.mark.parametrize("seen", [{}, {7: 1, 10: 0, 9: 2}], ids=str)
def test_the_hardest_of_each_row_is_in_the_checkpoint(seen):
    saved, resumed, checkpoint = make_method("group_dpo"), make_method("group_dpo"), {}
    saved.hardest_seen = seen
    saved.on_save_checkpoint(checkpoint)
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.hardest_seen == seen
