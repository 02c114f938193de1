"""SFT as a method: its first step against slow figures."""

import pytest
import torch

from tests.methods.slow import completions, first_step
from tests.methods.toy import fit, make_loader, make_method, make_rows, rows_for


def test_the_first_gradient_is_that_of_the_plain_mean():
    """SGD's first update equals a slow, obvious float64 mean over all targets of the first step."""
    rows, lr = make_rows(), 0.5
    loader = make_loader(rows, 2, num_steps=1, order="as_is")
    method = make_method("sft", lr=lr)
    weights, _ = fit(method, loader)
    policy = make_method("sft").factories.make_policy().double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows[:8]:
        logps = policy(input_ids=torch.tensor([row.tokens])).logits[0].log_softmax(-1)
        for place in range(1, len(row.tokens)):
            if row.supervised[place]:
                total = total - logps[place - 1, row.tokens[place]]
                count += 1
    (total / count).backward()
    expected = torch.cat([(p - lr * p.grad).flatten() for p in policy.parameters()])
    assert (weights.double() - expected).norm() < 1e-6 * expected.norm()


def test_the_mean_over_tokens_is_that_of_the_whole_step():
    rows = [found for (found,) in completions("sft")]
    expected = -sum(logp for logp, _ in rows) / sum(count for _, count in rows)
    assert first_step("sft")["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_the_mean_over_sequences_is_that_of_their_means():
    """Each mean is weighted by its row, as the toy method has it."""
    rows = [found for (found,) in completions("sft_by_sequence")]
    weights = [row.columns["worth"] for row in rows_for("sft_by_sequence")[:8]]
    weighted = [weight * logp / count for weight, (logp, count) in zip(weights, rows, strict=True)]
    expected = -sum(weighted) / sum(weights)
    assert first_step("sft_by_sequence")["train/loss"] == pytest.approx(expected, rel=1e-5)
