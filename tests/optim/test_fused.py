"""The fused optimizer is chosen on a GPU alone, and only if the user has not chosen."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from alignlab.optim.fused import make_fused

WEIGHT = torch.nn.Parameter(torch.zeros(2, 2))


def made(make, on_gpu):
    """The arguments that the optimizer is made with for weights that lie on a GPU or on the CPU."""
    return make_fused(
        make, [{"params": [SimpleNamespace(is_cuda=on_gpu)]}, {"params": [SimpleNamespace(is_cuda=True)]}]
    )


def with_option(groups, *, lr=1.0, fused=None):
    return fused


def without_option(groups, *, lr=1.0):
    return "plain"


@pytest.mark.parametrize(
    ("make", "on_gpu", "chosen"),
    [
        (partial(with_option, lr=0.1), True, True),
        (partial(with_option, lr=0.1), False, None),
        (partial(with_option, fused=False), True, False),
        (partial(without_option, lr=0.1), True, "plain"),
    ],
)
def test_chosen(make, on_gpu, chosen):
    assert made(make, on_gpu) == chosen


def test_a_real_optimizer_on_the_cpu_stays_as_it_is():
    optimizer = make_fused(partial(torch.optim.AdamW, lr=0.1), [{"params": [WEIGHT]}])
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["fused"] is None
