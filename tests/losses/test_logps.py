"""Sums by segment."""

import torch

from alignlab.losses.logps import segment_sums, token_counts


def test_sums_and_gradients_of_every_segment_also_of_empty_ones():
    values = torch.randn(7, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 0, 2, 2, 2, 3, 5])
    upstream = torch.randn(7, dtype=torch.float64)
    found = segment_sums(values, ids, 7)
    slow = [sum(value for value, one in zip(values.tolist(), ids.tolist(), strict=True) if one == s) for s in range(7)]
    assert torch.allclose(found, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-15)
    (found * upstream).sum().backward()
    assert values.grad.equal(upstream[ids])


def test_no_values():
    values = torch.zeros(0, requires_grad=True)
    found = segment_sums(values, torch.zeros(0, dtype=torch.long), 3)
    found.sum().backward()
    assert found.tolist() == [0, 0, 0] and values.grad.shape == (0,)


def test_a_completion_without_tokens_counts_as_one_token_also_at_the_end():
    assert token_counts(torch.tensor([0, 0, 2]), 5, torch.float32).tolist() == [2.0, 1.0, 1.0, 1.0, 1.0]
