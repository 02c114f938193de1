"""What each of two processes holds: shares of FSDP2 and ZeRO-3 come to half of what a copy of the model takes."""

import os

import pytest
import torch
from benchmarks.strategy_memory import KINDS, Memory
from tests.distributed.strategies import jobs
from tests.methods.toy import fit, make_loader, make_method, make_rows

from alignlab.config.build import build

# The toy's weights are below the sizes from which ZeRO-3 spreads a tensor and cuts the step into groups.
ZERO = {"stage3_param_persistence_threshold": 0, "sub_group_size": 1000}


def held(strategy, *, to):
    """Bytes of parameters, gradients and optimizer state on this rank, in the optimizer's step."""
    changes = {f"config.zero_optimization.{key}": size for key, size in ZERO.items()} if "z3" in strategy else {}
    method = make_method("sft", optimizer=torch.optim.AdamW, lr=1e-2, clip=1.0)
    loader = make_loader(make_rows(), 2, num_steps=2, rank=int(os.environ["RANK"]), num_ranks=2)
    chosen, watch = build("strategy", jobs.choices("full", strategy, **changes)[1]), Memory(to=to)
    fit(method, loader, strategy=chosen, devices=2, weights=False, callbacks=[watch])
    return sum(watch.held[kind] for kind in KINDS[:3])


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_z3"])
def test_shares_are_half_of_a_copy(pair, tmp_path, strategy):
    """A copy takes 16 bytes per float32 weight with AdamW, so half of it is 8; within 15 % for what stays whole."""
    copies = pair.run(held, "ddp", to=str(tmp_path))
    shares = pair.run(held, strategy, to=str(tmp_path))
    for copy, share in zip(copies, shares, strict=True):
        assert share == pytest.approx(copy / 2, rel=0.15)
