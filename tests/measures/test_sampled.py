"""Rewards and pass rates of completions, by prompt."""

import math

import pytest
import torch

from alignlab.measures.estimates import mean
from alignlab.measures.sampled import sample_metrics

NAN = math.nan


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def means(columns, ks):
    return {name: mean(prompts) for name, prompts in sample_metrics(columns, ks).items()}


def test_metrics_worked_out_by_hand():
    """Of 4 completions 1, 2 and 0 pass: of sets of two 1 - 3/6, 1 - 1/6 and 0 hold one that passes."""
    passed = tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, NAN, 1]])
    found = means({"reward": tensor([[1, 2], [NAN, 0]]), "passed": passed}, [1, 2, 4])
    assert found == pytest.approx(
        {
            "reward": 1.0,
            "pass@1": 3 / 12,
            "mean@1": 1 / 3,
            "pass@2": (1 / 2 + 5 / 6) / 3,
            "mean@2": 2 / 6,
            "pass@4": 2 / 3,
            "mean@4": 3 / 12,
        }
    )


def test_several_rewards_are_named():
    one, two = {"reward": tensor([[3.0]]), "reward/a": tensor([[1.0]])}, {"reward/b": tensor([[2.0]])}
    assert means(one, []) == {"reward": 3.0}
    assert means(one | two, []) == {"reward": 3.0, "reward/a": 1.0, "reward/b": 2.0}


def test_what_nobody_knows_is_not_logged():
    assert means({"reward": tensor([[NAN, NAN]]), "passed": tensor([[NAN, NAN]])}, [1]) == {}
