"""What every method does around its loss: which weights decay, and how its progress is counted."""

import functools

import torch

from tests.methods.toy import fit, make_loader, make_method, make_policy, rows_for, spoiled


def test_matrices_decay_and_vectors_do_not():
    """With next to no gradient, SGD multiplies what decays by 1 - 0.5 · 0.1 = 0.95, and leaves the rest."""
    method = make_method("sft", optimizer=functools.partial(torch.optim.SGD, weight_decay=0.1), lr=0.5)
    fit(spoiled(method, 1e-9, steps=[0]), make_loader(rows_for("sft"), 4, num_steps=1))
    for (name, before), after in zip(make_policy().named_parameters(), method.policy.parameters(), strict=True):
        expected = before if name.endswith("norm.weight") else 0.95 * before
        torch.testing.assert_close(after, expected)


def test_progress_counts_rows_and_tokens_from_zero():
    rows = rows_for("sft")
    _, steps = fit(make_method("sft"), make_loader(rows, 4, num_steps=2, order="as_is"))
    for number, (step, seen) in enumerate(zip(steps, (list(rows)[:8], list(rows)), strict=True), start=1):
        assert (step["progress/step"], step["progress/samples"]) == (number, len(seen))
        assert step["progress/tokens"] == sum(len(row.tokens) for row in seen)
        assert step["progress/supervised_tokens"] == sum(sum(row.supervised) for row in seen)
