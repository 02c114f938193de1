"""A gradient that is known: with SGD the weights are the same for every strategy and every accumulation."""

import math
from itertools import product

import pytest
import torch
from tests.distributed.strategies.cells import STRATEGIES

HERE = [name for name in ("single", *STRATEGIES) if "nvme" not in name]


@pytest.mark.parametrize("rows_at_once", [4, 1], ids=["accumulation 1", "accumulation 4"])
@pytest.mark.parametrize("strategy", HERE)
def test_known_gradient(strategy, rows_at_once, alone, together):
    """Two processes have four rows of eight each: one micro-batch, or four. A factor in a gradient would show here."""
    expected = alone("sft", "full", optimizer="sgd", rows_at_once=8, clip=None, num_steps=3)
    options = {"optimizer": "sgd", "rows_at_once": rows_at_once, "clip": None, "num_steps": 3}
    ours = alone("sft", "full", **options) if strategy == "single" else together("sft", "full", strategy, **options)[0]
    for name, tensor in expected["weights"].items():
        assert (ours["weights"][name] - tensor).norm() <= 1e-6 * tensor.norm(), name
    assert [step["train/grad_norm"] for step in ours["steps"]] == pytest.approx(
        [step["train/grad_norm"] for step in expected["steps"]], rel=1e-5
    )


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_z1", "deepspeed_z3"])
def test_clipped_update_has_the_length_of_the_limit(strategy, alone, together):
    start = alone("sft", "full", optimizer="sgd", num_steps=1, clip=1e-12)["weights"]
    lr, limit = 0.5, 0.05
    after = together("sft", "full", strategy, optimizer="sgd", num_steps=1, clip=limit)[0]
    moved = torch.stack([(after["weights"][name] - start[name]).norm() for name in start]).norm()
    assert after["steps"][0]["train/grad_norm"] > limit
    assert moved.item() == pytest.approx(lr * limit, rel=5e-3)


QUICK = [(0.0, "fsdp"), (0.0, "deepspeed_z1"), (0.0, "deepspeed_z2_offload"), (0.0, "deepspeed_z3"), (math.nan, "fsdp")]
SPOILED = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in product((0.0, math.nan), HERE)
]


@pytest.mark.parametrize(("factor", "strategy"), SPOILED)
def test_a_step_without_a_signal_moves_nothing(strategy, factor, alone, together):
    """Neither decay nor momentum: after such steps the weights are those before them, to the bit."""
    run = (lambda *job, **options: [alone(*job[:2], **options)]) if strategy == "single" else together
    before = run("sft", "full", strategy, num_steps=2)[0]["weights"]
    after = run("sft", "full", strategy, num_steps=4, spoil=(factor, (2, 3)))[0]
    assert all(torch.equal(after["weights"][name], before[name]) for name in before)
    assert [step["progress/step"] for step in after["steps"]] == [1, 2, 3, 4]
