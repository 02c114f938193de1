"""What only shows on a GPU: where weights, buffers and checkpoints are. Here doubles stand in."""

from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from alignlab.distributed.strategies.ddp import ddp, single
from alignlab.distributed.strategies.fsdp import fsdp
from alignlab.distributed.strategies.state import AnyState
from alignlab.distributed.strategies.zero import DeepSpeed, Partitioned

FSDP = {"param_dtype": None, "reduce_dtype": None, "cpu_offload": False, "prefetch_blocks": 0}
MAKERS = {
    "single": single,
    "ddp": lambda: ddp(timeout_seconds=9),
    "fsdp": lambda: fsdp(timeout_seconds=9, **FSDP),
    "deepspeed": lambda: DeepSpeed(config={"zero_optimization": {"stage": 3}}, timeout=timedelta(seconds=9)),
}


@pytest.mark.parametrize("strategy", MAKERS)
def test_the_end_of_a_fit_leaves_the_model_where_it_is(strategy):
    """There the model is written: quantised and partitioned weights cannot be moved to the CPU like others."""
    strategy, module = MAKERS[strategy](), MagicMock(_trainer=None)
    strategy._lightning_module, strategy.accelerator = module, MagicMock()
    strategy.cluster_environment = MagicMock()
    strategy.teardown()
    module.cpu.assert_not_called()
    module.to.assert_not_called()
    strategy.accelerator.teardown.assert_called_once_with()


def test_buffers_follow_the_partitioned_weights(monkeypatch):
    """DeepSpeed partitions on the GPU what was built on the CPU, and does not move buffers with it."""
    monkeypatch.setattr("deepspeed.zero.Init", lambda **_: None)
    buffers = dict((model := nn.BatchNorm1d(2)).named_buffers())
    before = {name: buffer.data_ptr() for name, buffer in buffers.items()}
    other = torch.device("cpu", 1)  # PyTorch copies to it as to a GPU
    rest = {"zero_stage_3": True, "keep_exact": lambda policy: None, "cast": lambda policy: None, "config": {}}
    Partitioned(SimpleNamespace(root_device=other, **rest)).shard(model)
    assert all(buffer.data_ptr() != before[name] for name, buffer in buffers.items())


def test_a_checkpoint_is_read_into_host_memory(monkeypatch, tmp_path):
    """Every rank reads the file; on the GPU that wrote it, each copy would need the memory of a second model."""
    torch.save({"weights": torch.ones(2)}, tmp_path / "state")
    asked, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **o: asked.append(o["map_location"]) or load(*a, **o))
    AnyState().load_checkpoint(tmp_path / "state", weights_only=True)
    assert asked == ["cpu"]
