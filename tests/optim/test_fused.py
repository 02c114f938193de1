"""The fused Adam is chosen where all weights are on one kind of device that has it, unless the user has chosen."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from alignlab.optim import fused
from alignlab.optim.fused import make_fused


def with_option(groups, *, lr=1.0, fused=None, foreach=None):
    return fused


def without_option(groups, *, lr=1.0):
    return "plain"


@pytest.mark.parametrize(
    ("make", "devices", "chosen"),
    [
        (partial(with_option, lr=0.1), ("cuda", "cuda"), True),
        (partial(with_option, lr=0.1), ("cpu", "cpu"), True),
        (partial(with_option, lr=0.1), ("cpu", "cuda"), None),
        (partial(with_option, lr=0.1), ("tpu",), None),
        (partial(with_option, fused=False), ("cuda",), False),
        (partial(with_option, foreach=True), ("cuda",), None),
        (partial(without_option, lr=0.1), ("cuda",), "plain"),
    ],
)
def test_chosen(make, devices, chosen, monkeypatch):
    monkeypatch.setattr(fused, "FUSED", (with_option,))
    groups = [{"params": [SimpleNamespace(device=SimpleNamespace(type=device))]} for device in devices]
    assert make_fused(make, groups) == chosen


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam, partial(torch.optim.AdamW, amsgrad=True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fused_steps_equal_others(kind, dtype):
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, 5, generator=draw), torch.randn(4, 7, 5, generator=draw)
    found = []
    for chosen in (None, False):
        weight = torch.nn.Parameter(start.to(dtype))
        optimizer = make_fused(partial(kind, lr=0.1, fused=chosen), [{"params": [weight]}])
        assert optimizer.param_groups[0]["fused"] is (chosen is None)
        for gradient in gradients:
            weight.grad = gradient.to(dtype)
            optimizer.step()
        found.append(weight.detach())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(*found, rtol=tolerance, atol=tolerance)
