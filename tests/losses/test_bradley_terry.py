"""The reward model's loss against golden values and by hand."""

import math

import pytest
import torch

from alignlab.losses.bradley_terry import bradley_terry
from tests.losses.golden import cases, inputs
from tests.losses.reduce import step_mean

PLAIN = {"margins": None, "weights": None, "centring": 0.0}


def pairwise(chosen, rejected):
    """Rewards and trees, pair by pair."""
    return torch.stack([chosen, rejected], 1).flatten(), torch.arange(len(chosen)).repeat_interleave(2)


@pytest.mark.parametrize("case", cases("reward"), ids=lambda case: case["id"])
def test_golden_values(case):
    given, config = inputs(case), case["config"]
    chosen = given["rewards_chosen"].requires_grad_()
    rewards, group_ids = pairwise(chosen, given["rewards_rejected"])
    margins = given["margin"].repeat_interleave(2) if config["margin"] else None
    centring = config["center_rewards_coefficient"] or 0.0
    output = bradley_terry(rewards, group_ids, margins=margins, weights=None, centring=centring)
    loss = step_mean(*output.terms, sequences=2 * len(chosen), groups=len(chosen))
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-9)


def test_worked_by_hand():
    """One chosen (1) against two (0, 2): leads 1 and -1, log(1 + e^-1) + log(1 + e)."""
    output = bradley_terry(torch.tensor([1.0, 0.0, 2.0]), torch.zeros(3, dtype=torch.long), **PLAIN)
    (term,) = output.terms
    assert term.losses.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.e)])
    assert term.unit == "pairs"
    means = {name: (ratio.sum / ratio.weight).item() for name, ratio in output.metrics.items()}
    assert means["rewards/accuracies"] == 0.5
    assert means["rewards/margins"] == 0.0
    assert means["rewards/brier"] == pytest.approx(((1 / (1 + math.e)) ** 2 + (math.e / (1 + math.e)) ** 2) / 2)


def test_weights_and_centring_by_hand():
    """Equal rewards 0.5: log 2 each, plus 0.1 * 1² for the centre, the second pair counted three times."""
    rewards, group_ids = pairwise(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]))
    weights = torch.tensor([1.0, 1.0, 3.0, 3.0])
    output = bradley_terry(rewards, group_ids, margins=None, weights=weights, centring=0.1)
    assert output.terms[0].sum.item() == pytest.approx(4 * (math.log(2) + 0.1), rel=1e-6)


def test_gradients():
    rewards = torch.randn(6, dtype=torch.float64, requires_grad=True)
    group_ids, margins = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0.5, 0.5, 0.5, 0.1, 0.1, 0.1]).double()
    settings = {"margins": margins, "weights": margins, "centring": 0.2}
    assert torch.autograd.gradcheck(lambda x: bradley_terry(x, group_ids, **settings).terms[0].losses, (rewards,))


def test_a_tie_is_not_ranked_right():
    output = bradley_terry(torch.zeros(2), torch.zeros(2, dtype=torch.long), **PLAIN)
    assert output.metrics["rewards/accuracies"].sum == 0
