"""What tokens weigh: worked by hand, and the same however a step is cut."""

import pytest
import torch

from alignlab.losses.normaliser import normalise
from tests.losses.reduce import step_mean

# Completions of 2, 1 and 3 tokens.
OWNER = torch.tensor([0, 0, 1, 2, 2, 2])
LOSSES = torch.tensor([1.0, 3.0, 5.0, 6.0, 7.0, 11.0], dtype=torch.float64)
NORMALISERS = ["sequence", "token", "constant", "sum"]
COUNTS = {"tokens": 6, "sequences": 3}


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
    term = normalise(LOSSES, OWNER, 3, normaliser, max_completion_tokens=10)
    assert step_mean(term, **COUNTS).item() == pytest.approx(expected)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_parts_of_a_step_add_up_to_it(normaliser):
    whole = normalise(LOSSES, OWNER, 3, normaliser, 10)
    parts = [
        normalise(LOSSES[:3], OWNER[:3], 2, normaliser, 10),
        normalise(LOSSES[3:], OWNER[3:] - 2, 1, normaliser, 10),
    ]
    assert sum(step_mean(part, **COUNTS) for part in parts).item() == pytest.approx(step_mean(whole, **COUNTS).item())


def test_a_completion_without_tokens_still_counts():
    """Mean over three completions, of which the last says nothing: (2 + 5) / 3."""
    term = normalise(LOSSES[:3], OWNER[:3], 3, "sequence")
    assert step_mean(term, tokens=3, sequences=3).item() == pytest.approx(7 / 3)
