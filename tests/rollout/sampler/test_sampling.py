"""One draw: worked by hand, and against the processors of Transformers."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alignlab.rollout.sampler.sampling import SamplingSettings, draw, invert, penalise, truncate

OPEN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
PROBS = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


def settings(**changes):
    return SamplingSettings(**{**OPEN, "max_completion_tokens": 8, "stop_tokens": [], "stop_strings": [], **changes})


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.7}, [1, 3]),  # 0.4 + 0.3 reach 0.7 exactly
        ({"top_p": 0.71}, [1, 2, 3]),
        ({"top_p": 0.01}, [1]),
        ({"min_p": 0.5}, [1, 2, 3]),  # 0.5 of 0.4
        ({"min_p": 0.6}, [1, 3]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # 0.7 of the 0.9 that top-k leaves is 0.63
        ({"top_k": 9}, [0, 1, 2, 3]),
    ],
)
def test_truncations_worked_by_hand(changes, kept):
    assert truncate(PROBS.double(), settings(**changes)).nonzero()[:, 1].tolist() == kept


def test_inversion_worked_by_hand():
    """Cumulative weights 1, 5, 5, 8: noise times 8 falls below 1, below 5, or beyond; the empty token never comes."""
    weights = torch.tensor([[1.0, 4.0, 0.0, 3.0]]).expand(6, 4)
    noise = torch.tensor([0.0, 0.124, 0.125, 0.624, 0.625, 1 - 2**-53], dtype=torch.float64)
    assert invert(weights, noise).tolist() == [0, 0, 1, 1, 3, 3]


def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    logits, seen = torch.tensor([[-0.5, 0.5, 0.0, 3.0, 0.5]]).double(), torch.tensor([[True] * 4 + [False]])
    assert penalise(logits, seen, 2.0).tolist() == [[-1.0, 0.25, 0.0, 1.5, 0.5]]


def test_ties_of_the_last_in_the_nucleus_stay():
    probs = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert truncate(probs, settings(top_p=0.5)).count_nonzero() == 4


def test_the_nucleus_of_flat_rows_reaches_beyond_the_head():
    """1000 equal tokens of 0.001 and a peaked row: each gets its own edge."""
    flat, peaked = torch.full((1000,), 0.001), torch.zeros(1000)
    flat += torch.linspace(0, 1e-5, 1000)
    peaked[:2] = torch.tensor([0.9, 0.1])
    kept = truncate(torch.stack([flat / flat.sum(), peaked]), settings(top_p=0.85)).count_nonzero(dim=1)
    assert kept[1] == 1 and 840 < kept[0] < 860


def reference(logits, changes, history):
    """Probabilities after the processors of Transformers."""
    known = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    steps = LogitsProcessorList(known[name](changes[name]) for name in known if name in changes)
    return steps(history, logits).softmax(-1)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.8, "temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
def test_the_distribution_is_that_of_transformers(changes):
    """A fine grid of noise instead of chance: each token's share of it is its probability."""
    logits = 3 * torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    history = torch.tensor([[3, 3, 17, 30]])
    seen = torch.zeros(1, 32, dtype=torch.bool).scatter_(1, history, True) if "repetition_penalty" in changes else None
    noise = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    rows = logits.expand(20_000, -1)
    tokens, logps = draw(rows, noise, settings(**changes), None if seen is None else seen.expand(20_000, -1))
    shares = torch.bincount(tokens, minlength=32) / 20_000
    torch.testing.assert_close(shares, reference(logits, changes, history)[0], atol=1.1e-4, rtol=0)
    scaled = (logits / changes.get("temperature", 1.0)).log_softmax(-1)[0]
    torch.testing.assert_close(logps, scaled[tokens])


def test_greedy_takes_the_largest_and_scores_it_at_temperature_one():
    logits = torch.tensor([[1.0, 3.0, 2.9]])
    tokens, logps = draw(logits, torch.zeros(1, dtype=torch.float64), settings(temperature=0.0), None)
    assert tokens.tolist() == [1]
    torch.testing.assert_close(logps, logits.log_softmax(-1)[:, 1])
    seen = torch.tensor([[False, True, False]])
    penalised = settings(temperature=0.0, repetition_penalty=1.1)
    assert draw(logits, torch.zeros(1, dtype=torch.float64), penalised, seen)[0].tolist() == [2]
