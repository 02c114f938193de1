"""KTO against golden values, hand-worked numbers and its limits."""

import math

import pytest
import torch

from alignlab.losses import kto
from tests.losses.golden import cases, inputs


@pytest.mark.parametrize("case", cases("kto"), ids=lambda case: case["id"])
def test_golden_values(case):
    given, config = inputs(case), case["config"]
    logps = given["per_token_logps"].requires_grad_()
    ratios = (logps - given["ref_per_token_logps"]).sum(1)
    mismatched = (given["kl_per_token_logps"] - given["kl_ref_per_token_logps"]).sum(1)
    point = kto.reference_point(mismatched.sum(), torch.tensor(len(mismatched)))
    desirable = given["label"].bool()
    losses = getattr(kto, config["loss_type"])(kto.LogRatios(ratios, desirable, point), beta=config["beta"])
    weights = torch.where(
        desirable, *torch.tensor([config[f"{side}desirable_weight"] for side in ("", "un")], dtype=torch.float64)
    )
    loss = (losses * weights).mean()
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-9)
    if "grad" in case["expected"]:
        (gradient,) = torch.autograd.grad(loss, logps)
        mask = given["completion_mask_shifted"].bool()
        expected = torch.tensor(case["expected"]["grad"], dtype=torch.float64)
        assert torch.allclose(gradient[mask], expected[mask], rtol=1e-8, atol=1e-10)


def test_worked_by_hand():
    """β = 2, z = 0.5: log-ratios 1 (desirable) and 1 (not) give σ(-1) and σ(1)."""
    ratios = kto.LogRatios(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), torch.tensor(0.5))
    losses = kto.kto(ratios, beta=2.0)
    assert losses.tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)])


def test_the_reference_point_is_never_negative():
    assert kto.reference_point(torch.tensor(-3.0), torch.tensor(4)).item() == 0.0
    assert kto.reference_point(torch.tensor(3.0), torch.tensor(4)).item() == 0.75
    assert kto.reference_point(torch.tensor(0.0), torch.tensor(0)).item() == 0.0


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_gradients(name):
    ratios = torch.randn(5, dtype=torch.float64, requires_grad=True)
    desirable, point = torch.tensor([True, False, True, True, False]), torch.tensor(0.3, dtype=torch.float64)

    def loss(values):
        return getattr(kto, name)(kto.LogRatios(values, desirable, point), beta=0.4)

    assert torch.autograd.gradcheck(loss, (ratios,))
    (gradient,) = torch.autograd.grad(loss(ratios).sum(), ratios)
    assert ((gradient < 0) == desirable).all()
