"""``optimizer=cpu_adamw``: AdamW's steps where the optimizer rests on the host; refused where it cannot be made."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from deepspeed.ops.op_builder import CPUAdamBuilder
from tests.commands import QUIET, metrics, start

from alignlab.cli.composition.compose import compose
from alignlab.config import compat, schema
from alignlab.distributed.strategies import cpu_adamw as module
from alignlab.distributed.strategies.cpu_adamw import cpu_adamw
from alignlab.errors import InputError

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
SMALL = [
    *QUIET, "trainer.accelerator=cpu", "trainer.max_steps=4", "checkpoint.every_n_steps=2", "checkpoint.keep_last=9",
    "data.source.num_train=64", "data.source.num_validation=8", "data.global_batch_size=16",
]  # fmt: skip


def losses(folder, *words):
    process = start(*SMALL, *words, f"run_dir={folder}")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return {row["progress/step"]: row["train/loss"] for row in metrics(folder) if "train/loss" in row}


@pytest.fixture(scope="module")
def op():
    if shutil.which("ninja") is None or shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no compiler")
    assert CPUAdamBuilder().is_compatible(verbose=False)


def test_steps_are_those_of_adamw(op):
    start_from = torch.randn(100, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.nn.Parameter(start_from.clone()) for _ in range(2))
    pairs = [(ours, cpu_adamw([ours], **SETTINGS)), (theirs, torch.optim.AdamW([theirs], **SETTINGS))]
    for _ in range(5):
        for parameter, optimizer in pairs:
            parameter.grad = 3 * parameter.detach() ** 2 - 1
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_it_trains_and_resumes_under_offload(op, tmp_path):
    offload = ["strategy=deepspeed_z2_offload", "optimizer=cpu_adamw"]
    plain = losses(tmp_path / "plain", "strategy=single", "optimizer=adamw")
    whole = losses(tmp_path / "whole", *offload)
    assert whole == pytest.approx(plain, rel=1e-4)
    resumed = losses(tmp_path / "resumed", *offload, f"resume={tmp_path / 'whole' / 'checkpoints' / 'step-00000002'}")
    assert resumed == {step: loss for step, loss in whole.items() if step > 2}


def test_it_is_refused_where_it_cannot_be_made(monkeypatch):
    words = ["strategy=deepspeed_z2_offload", "optimizer=cpu_adamw", "trainer.accelerator=cpu"]
    compat.check(schema.check(compose(words)))
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="an optimizer of DeepSpeed, which is not installed"):
        compat.check(schema.check(compose(words)))


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from alignlab.distributed.strategies.cpu_adamw import cpu_adamw
dist.init_process_group("gloo", init_method=f"file://{FILE}", rank=0, world_size=1)
model = fully_shard(torch.nn.Linear(4, 4), mesh=init_device_mesh("cpu", (1,)))
optimizer = cpu_adamw(model.parameters(), lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
model(torch.ones(1, 4)).sum().backward()
print("before the step", flush=True)
optimizer.step()
"""


def test_shards_of_fsdp_end_the_process(op, tmp_path):
    command = [sys.executable, "-c", f"FILE = {str(tmp_path / 'store')!r}\n{SHARDED}"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert "before the step" in ended.stdout and ended.returncode == -signal.SIGSEGV


def test_a_weight_on_another_device_stops_it(op):
    parameter = torch.nn.Parameter(torch.ones(2, device="meta"))
    parameter.grad = torch.ones(2, device="meta")
    with pytest.raises(AssertionError, match="must be 'cpu'"):
        cpu_adamw([parameter], **SETTINGS).step()


def test_it_is_refused_with_fsdp():
    words = ["strategy=fsdp", "optimizer=cpu_adamw", "trainer.accelerator=cpu"]
    with pytest.raises(InputError, match="SIGSEGV"):
        compat.check(schema.check(compose(words)))


def test_the_compilers_failure_is_told(monkeypatch):
    def load(self):
        raise RuntimeError("Ninja is required to load C++ extensions")

    monkeypatch.setattr(CPUAdamBuilder, "load", load)
    with pytest.raises(InputError, match=r"cpu_adam cannot be compiled here \(Ninja is required.*optimizer=adamw"):
        cpu_adamw([torch.nn.Parameter(torch.ones(1))], **SETTINGS)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed"):
        cpu_adamw([torch.nn.Parameter(torch.ones(1))], **SETTINGS)


@pytest.mark.parametrize(
    ("strategy", "fits"), [("deepspeed_z3_offload", True), ("deepspeed_z2", False), ("ddp", False)]
)
def test_weights_on_an_accelerator_are_refused(strategy, fits):
    config = schema.check(compose([f"strategy={strategy}", "optimizer=cpu_adamw", "trainer.accelerator=cuda"]))
    if fits:
        return compat.check(config)
    with pytest.raises(InputError, match="it updates weights in host memory"):
        compat.check(config)
