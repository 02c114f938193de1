"""Ratios at every level, truncated weights, and the mask of what the policy has left behind, by hand."""

import pytest
import torch

from alignlab.losses.importance import MAX_LOG_RATIO, log_ratios, off_policy_mask, truncated_importance

# Completions of 2 and 3 tokens, and one without any.
OWNER = torch.tensor([0, 0, 1, 1, 1])
LOGS = torch.tensor([0.1, 0.3, -0.6, 0.0, 0.3], dtype=torch.float64)
ZEROS = torch.zeros(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [0.1, 0.3, -0.6, 0.0, 0.3]),
        ("sequence", [0.2, 0.2, -0.1, -0.1, -0.1]),
        ("sequence_sum", [0.4, 0.4, -0.3, -0.3, -0.3]),
    ],
)
def test_levels_by_hand(level, expected):
    assert log_ratios(LOGS, ZEROS, OWNER, 3, level).tolist() == pytest.approx(expected)
    same = log_ratios(LOGS.clone().requires_grad_(), None, OWNER, 3, level)
    assert same.tolist() == [0.0] * 5
    assert same.requires_grad


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_sum"])
def test_gradients(level):
    assert torch.autograd.gradcheck(lambda x: log_ratios(x, ZEROS, OWNER, 3, level), (LOGS.clone().requires_grad_(),))


def test_no_ratio_overflows():
    assert log_ratios(ZEROS, ZEROS - 200, OWNER, 3, "sequence_sum").tolist() == [MAX_LOG_RATIO] * 5


@pytest.mark.parametrize(
    ("level", "beyond", "expected"),
    [
        ("token", "truncate", [1.5, 0.5, 1.0, 1.5, 0.5]),
        ("token", "mask", [0.0, 0.5, 1.0, 0.0, 0.5]),
        ("sequence_sum", "truncate", [1.0, 1.0, 1.5, 1.5, 1.5]),
        ("sequence_sum", "mask", [1.0, 1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_truncated_weights_by_hand(level, beyond, expected):
    """Ratios 2 and 1/2; unknown, 4 and 1/2. The products are 1 and 2."""
    old = torch.tensor([2.0, 0.5, 1.0, 4.0, 0.5], dtype=torch.float64).log().requires_grad_()
    sampled = ZEROS.clone()
    sampled[2] = torch.nan
    weights = truncated_importance(old, sampled, OWNER, 2, cap=1.5, level=level, beyond=beyond)
    assert weights.tolist() == pytest.approx(expected)
    assert not weights.requires_grad


def test_bad_tokens_of_a_completion_left_behind_are_masked():
    """Drifts of 0.1 and (0.9 + 0.3 + unknown) / 3 = 0.4 nats per token, the second beyond 0.2."""
    sampled = torch.tensor([0.1, 0.1, 0.9, 0.3, torch.nan], dtype=torch.float64)
    advantages = torch.tensor([-1.0, 1.0, -1.0, 0.0, 1.0])
    mask = off_policy_mask(ZEROS, sampled, advantages, OWNER, 2, threshold=0.2)
    assert mask.tolist() == [True, True, False, True, True]
    assert off_policy_mask(ZEROS, sampled, advantages, OWNER, 2, threshold=0.5).all()


@pytest.mark.parametrize("beyond", ["truncate", "mask"])
def test_a_weight_that_equals_the_cap_is_kept(beyond):
    old, owner = torch.tensor([0.0, 0.0]), torch.tensor([0, 1])
    weights = truncated_importance(old, old, owner, 2, cap=1.0, level="token", beyond=beyond)
    assert weights.tolist() == [1.0, 1.0]
