"""What tokens weigh: worked by hand, and the same however a step is cut or what is masked in it."""

import pytest
import torch

from alignlab.losses.normaliser import token_weights, total_weight, weigh

# Completions of 2, 1 and 3 tokens.
OWNER = torch.tensor([0, 0, 1, 2, 2, 2])
LOSSES = torch.tensor([1.0, 3.0, 5.0, 6.0, 7.0, 11.0], dtype=torch.float64)
NORMALISERS = ["sequence", "token", "constant", "sum"]


def reduce(losses, owner, mask, normaliser):
    return weigh(losses, owner, mask, normaliser=normaliser, max_completion_tokens=10, metrics={})


@pytest.mark.parametrize(
    ("normaliser", "expected"),
    [
        ("sequence", (2 + 5 + 8) / 3),
        ("token", 33 / 6),
        ("constant", 33 / (3 * 10)),
        ("sum", 33 / 3),
    ],
)
def test_worked_by_hand(normaliser, expected):
    output = reduce(LOSSES, OWNER, torch.ones(3), normaliser)
    assert (output.sum / output.weight).item() == pytest.approx(expected)


def test_weights_by_hand():
    assert token_weights("sequence", OWNER, 4, 10).tolist() == pytest.approx([1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])
    assert token_weights("constant", OWNER, 4, 10).tolist() == pytest.approx([0.1] * 6)
    assert total_weight("token", tokens=6, sequences=3) == 6


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_a_masked_completion_is_as_if_it_were_not_there(normaliser):
    poisoned = torch.where(OWNER == 1, torch.nan, LOSSES).requires_grad_()
    masked = reduce(poisoned, OWNER, torch.tensor([1, 0, 1]), normaliser)
    without = reduce(LOSSES[OWNER != 1], torch.tensor([0, 0, 1, 1, 1]), torch.ones(2), normaliser)
    assert masked.sum.item() == pytest.approx(without.sum.item())
    assert masked.weight.item() == without.weight.item()
    masked.sum.backward()
    assert poisoned.grad[2] == 0


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_parts_of_a_step_add_up_to_it(normaliser):
    whole = reduce(LOSSES, OWNER, torch.ones(3), normaliser)
    parts = [
        reduce(LOSSES[:3], OWNER[:3], torch.ones(2), normaliser),
        reduce(LOSSES[3:], OWNER[3:] - 2, torch.ones(1), normaliser),
    ]
    assert sum(part.sum.item() for part in parts) == pytest.approx(whole.sum.item())
    assert sum(part.weight.item() for part in parts) == whole.weight.item()
    assert whole.weight.item() == total_weight(normaliser, tokens=6, sequences=3)


def test_a_completion_without_tokens_still_counts():
    """Mean over three completions, of which the last says nothing: (2 + 5) / 3."""
    output = reduce(LOSSES[:3], OWNER[:3], torch.ones(3), "sequence")
    assert (output.sum / output.weight).item() == pytest.approx(7 / 3)
