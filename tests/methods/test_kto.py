"""KTO as a method: its reference point belongs to the whole step, and comes from mismatched pairs."""

import dataclasses

import pytest
import torch

from alignlab.data.batching.collate import collate
from alignlab.losses.logps import segment_sums
from alignlab.models.scoring import token_scores
from tests.methods.slow import make_other
from tests.methods.toy import METHODS, fit, make_loader, make_method, make_policy, rows_for


def make_kto():
    factories = dataclasses.replace(make_method("kto", lr=0.0).factories, open_model=make_other)
    return METHODS["kto"](reference="somewhere", factories=factories)


@torch.no_grad()
def slow_ratios(rows):
    """Log-ratio of each row, one at a time."""
    policy, reference, found = make_policy(), make_other(), []
    for row in rows:
        batch = collate([row], packing=False)
        logps = [segment_sums(token_scores(m, batch).logps, batch.sequence_ids, 1) for m in (policy, reference)]
        found.append(logps[0] - logps[1])
    return torch.cat(found)


@pytest.mark.parametrize("size", [8, 3, 1])
def test_the_point_is_the_mean_over_the_steps_mismatched_pairs(size):
    """z_0 = max(0, mean over the step's 8 rows of log π/π_ref of prompt and next completion), however it is cut."""
    rows = list(rows_for("kto"))[:8]
    _, steps = fit(make_kto(), make_loader(rows_for("kto"), size, num_steps=1, order="as_is"))
    expected = slow_ratios([row.mismatched for row in rows]).mean().clamp(min=0).item()
    assert expected > 0.5
    assert steps[0]["kto/reference_point"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_mean_of_the_weighted_losses_around_the_point():
    """1 - σ(β (r - z_0)) for the desirable, 1.3 (1 - σ(β (z_0 - r))) for the others."""
    rows = list(rows_for("kto"))[:8]
    _, steps = fit(make_kto(), make_loader(rows_for("kto"), 3, num_steps=1, order="as_is"))
    point, ratios = slow_ratios([row.mismatched for row in rows]).mean().clamp(min=0), slow_ratios(rows)
    losses = [
        1 - torch.sigmoid(0.5 * (ratio - point)) if row.columns["desirable"]
        else 1.3 * (1 - torch.sigmoid(0.5 * (point - ratio)))
        for row, ratio in zip(rows, ratios, strict=True)
    ]  # fmt: skip
    assert steps[0]["train/loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    desirable = torch.tensor([bool(row.columns["desirable"]) for row in rows])
    assert steps[0]["rewards/chosen"] == pytest.approx(0.5 * ratios[desirable].mean().item(), rel=1e-5)
    assert steps[0]["rewards/rejected"] == pytest.approx(0.5 * ratios[~desirable].mean().item(), rel=1e-5)
    assert steps[0]["kto/desirable_fraction"] == pytest.approx(desirable.float().mean().item())


def test_the_point_passes_no_gradient_on():
    """Of log-ratios 0 the gradient is that of the completions alone: the point is a number."""
    method = make_method("kto")
    fit(method, make_loader(rows_for("kto"), 4, num_steps=1))
    assert not method.point.requires_grad
