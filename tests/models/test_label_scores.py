"""Scores of labels and their gradients are those of PyTorch's own operations, in float64."""

import pytest
import torch

from alignlab.models.label_scores import label_scores

WANTED = [(), ("entropies",), ("log_collisions",), ("entropies", "log_collisions")]


def slow(logits, labels, temperature):
    log_probs = torch.log_softmax(logits / temperature, -1)
    probs = log_probs.exp()
    logps = log_probs.gather(-1, labels[:, None])[:, 0]
    return logps, logits.argmax(-1) == labels, -(probs * log_probs).sum(-1), (probs**2).sum(-1).log()


def drawn(dtype=torch.float64, rows=7, vocabulary=23):
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[0] = logits[0].argmax()
    return logits.to(dtype), labels, torch.randn(3, rows, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("want", WANTED, ids=" ".join)
def test_values_and_gradients(want, temperature):
    logits, labels, upstream = drawn()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    logps, hits, entropies, collisions = label_scores(ours, labels, temperature, want)
    exact = slow(theirs, labels, temperature)
    kept = [0, *(index for index, name in ((2, "entropies"), (3, "log_collisions")) if name in want)]
    found = (logps, hits, entropies, collisions)
    assert hits.equal(exact[1]) and hits.any() and not hits.all()
    for index in kept:
        assert torch.allclose(found[index], exact[index], rtol=0, atol=1e-13)
    weights = dict(zip((0, 2, 3), upstream, strict=True))
    sum((found[index] * weights[index]).sum() for index in kept).backward()
    sum((exact[index] * weights[index]).sum() for index in kept).backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("want", WANTED[1:], ids=" ".join)
def test_a_quantity_that_is_only_logged_has_no_gradient(want):
    logits, labels, upstream = drawn()
    given = [logits.clone().requires_grad_() for _ in range(2)]
    for one, wanted in zip(given, (want, ()), strict=True):
        (label_scores(one, labels, 1.0, wanted)[0] * upstream[0]).sum().backward()
    assert torch.allclose(given[0].grad, given[1].grad, rtol=0, atol=1e-15)


def test_entropies_alone():
    logits, labels, upstream = drawn()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (label_scores(ours, labels, 1.0, ("entropies",))[2] * upstream[1]).sum().backward()
    (slow(theirs, labels, 1.0)[2] * upstream[1]).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-13)


def test_logits_of_sixteen_bits_are_scored_in_float32():
    logits, labels, upstream = drawn(torch.bfloat16)
    given = logits.clone().requires_grad_()
    logps = label_scores(given, labels, 0.9, ())[0]
    exact = slow(logits.double(), labels, 0.9)[0]
    assert logps.dtype == torch.float32 and torch.allclose(logps.double(), exact, atol=1e-5)
    (logps * upstream[0].float()).sum().backward()
    assert given.grad.dtype == torch.bfloat16


def test_the_gradient_can_be_computed_once():
    logits, labels, _ = drawn()
    loss = label_scores(logits.requires_grad_(), labels, 1.0, ())[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_no_rows():
    logits = torch.zeros(0, 5, requires_grad=True)
    logps, *_ = label_scores(logits, torch.zeros(0, dtype=torch.long), 1.0, ("entropies",))
    logps.sum().backward()
    assert logps.shape == (0,) and logits.grad.shape == (0, 5)
