"""In mixed precision every strategy trains float32 weights, and ``model/`` has them."""

import pytest
import torch
from safetensors.torch import load_file
from tests.commands import QUIET, alignlab, start
from transformers import AutoConfig, AutoModelForCausalLM

from alignlab.models.locations import POCKET

TINY = [
    *QUIET,
    "trainer.precision=bf16-mixed",
    "trainer.max_steps=1",
    "trainer.max_epochs=-1",
    "data.source.num_train=8",
    "data.source.num_validation=2",
    "data.global_batch_size=8",
    "scheduler=constant",
    "scheduler.warmup_steps=0",
    "optimizer.weight_decay=0",
]


def moved(folder):
    """How far the weights of a folder are from those that they started as."""
    before, after = (load_file(path / "model.safetensors") for path in (POCKET, folder / "model"))
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    return torch.cat([(after[name] - before[name].float()).flatten() for name in before])


def check(folder, lr):
    """Adam's first step moves every weight by its rate, whatever its gradient is."""
    steps = moved(folder).abs()
    assert steps.max() < 2 * lr, "a weight near 1 is rounded to the next float32"
    assert (steps > 0.5 * lr).float().mean() > 0.9, "most of the update is there"
    assert AutoConfig.from_pretrained(folder / "model").dtype == torch.float32


@pytest.mark.parametrize("strategy", ["single", pytest.param("deepspeed_z1", marks=pytest.mark.slow)])
def test_a_small_update_in_mixed_precision_is_in_the_model(tmp_path, strategy):
    """Weights are about 0.1, so a rate of 1e-7 changes them by one part in a million; bfloat16 has three digits."""
    words = [f"strategy={strategy}", "optimizer.lr=1e-7", f"run_dir={tmp_path}"]
    assert alignlab("train", *TINY, *words) == 0
    check(tmp_path, 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed_z1", "deepspeed_z2_offload", "deepspeed_z3"])
def test_a_small_update_of_sharded_weights_is_in_the_model(tmp_path, strategy):
    words = [f"strategy={strategy}", "optimizer.lr=1e-7", "trainer.devices=2", f"run_dir={tmp_path}"]
    process = start(*TINY, *words, *(["optimizer=cpu_adamw"] if "offload" in strategy else []))
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    check(tmp_path, 1e-7)


def test_the_model_is_written_in_the_dtype_that_was_asked_for(tmp_path):
    assert alignlab("train", *TINY, "model.save_dtype=bfloat16", "optimizer.lr=1e-3", f"run_dir={tmp_path}") == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").dtype == torch.bfloat16
