"""Checkpoints of every strategy: bit for bit where they were written, to 1e-5 under any other strategy or number."""

import pytest
import torch
from tests.distributed.strategies.cells import STRATEGIES

WRITERS = [name for name in STRATEGIES if "nvme" not in name]
STEPS, SAVED = 6, "step-00000004"


@pytest.fixture(scope="session")
def saved(alone, pair, base, tmp_path_factory):
    """``saved(peft, strategy)``: a whole run that left checkpoints, and their folder; once per session."""
    from tests.distributed.strategies import jobs

    done = {}

    def make(peft, strategy):
        if (peft, strategy) not in done:
            folder = str(tmp_path_factory.mktemp(f"{peft}-{strategy}"))
            run = jobs.train if strategy == "single" else lambda *cell, **o: pair.run(jobs.train_rank, *cell, **o)[0]
            done[peft, strategy] = run("sft", peft, strategy, base=base, num_steps=STEPS, checkpoints=folder), folder
        return done[peft, strategy]

    return make


def resume(alone, together, peft, strategy, folder, tmp_path):
    options = {"num_steps": STEPS, "checkpoints": str(tmp_path), "resume": f"{folder}/{SAVED}"}
    single = strategy == "single"
    return alone("sft", peft, **options) if single else together("sft", peft, strategy, **options)[0]


@pytest.mark.parametrize("strategy", WRITERS)
def test_resumed_bit_for_bit(strategy, saved, alone, together, tmp_path):
    whole, folder = saved("full", strategy)
    resumed = resume(alone, together, "full", strategy, folder, tmp_path)
    assert len(resumed["steps"]) == STEPS - 4
    assert all(torch.equal(resumed["weights"][name], tensor) for name, tensor in whole["weights"].items())
    assert [step["train/loss"] for step in resumed["steps"]] == [step["train/loss"] for step in whole["steps"][4:]]


@pytest.mark.slow
@pytest.mark.parametrize(("peft", "strategy"), [("full", "deepspeed_z3"), ("lora", "deepspeed_z2")])
def test_an_average_of_16_bit_weights_is_resumed_bit_for_bit(peft, strategy, together, tmp_path):
    """DeepSpeed's copies in 16 bits, of which the reference keeps float32 averages."""
    from alignlab.distributed.strategies.state import Stored
    from alignlab.run_folder.storage import STATE

    options = {"num_steps": STEPS, "precision": "bf16-mixed"}
    together("dpo_ema", peft, strategy, checkpoints=str(tmp_path / "whole"), **options)
    resume = str(tmp_path / "whole" / SAVED)
    together("dpo_ema", peft, strategy, checkpoints=str(tmp_path / "resumed"), resume=resume, **options)
    opened = [Stored(tmp_path / run / f"step-{STEPS:08d}" / STATE) for run in ("whole", "resumed")]
    whole, resumed = ({name: run.tensor(f"weights/{name}") for name in run.weights} for run in opened)
    assert whole.keys() == resumed.keys()
    assert not [name for name, tensor in whole.items() if not torch.equal(resumed[name], tensor)]
    averages = [tensor for name, tensor in whole.items() if "float32_averages" in name]
    scored = [tensor for name, tensor in whole.items() if "weights.model" in name or ".reference." in name]
    assert averages and {tensor.dtype for tensor in averages} == {torch.float32}
    assert all(any(torch.equal(tensor, average.bfloat16()) for average in averages) for tensor in scored)


@pytest.mark.parametrize(
    ("peft", "writer", "reader"),
    [
        ("full", "single", "ddp"),
        ("full", "single", "fsdp"),
        ("full", "single", "deepspeed_z2"),
        ("full", "single", "deepspeed_z3"),
        ("full", "fsdp", "single"),
        ("full", "fsdp", "deepspeed_z3"),
        ("full", "deepspeed_z1", "single"),
        ("full", "deepspeed_z2", "fsdp"),
        ("full", "deepspeed_z3", "deepspeed_z2_offload"),
        ("lora", "deepspeed_z3", "single"),
        ("lora", "fsdp", "deepspeed_z2"),
        ("qlora", "deepspeed_z2", "fsdp"),
    ],
)
def test_resumed_elsewhere(peft, writer, reader, saved, alone, together, tmp_path):
    """One process writes and two go on, or the other way round, or the strategy changes: the same losses."""
    whole, folder = saved(peft, writer)
    resumed = resume(alone, together, peft, reader, folder, tmp_path)
    losses = [step["train/loss"] for step in whole["steps"][4:]]
    assert [step["train/loss"] for step in resumed["steps"]] == pytest.approx(losses, rel=1e-5)
    norms = [step["train/grad_norm"] for step in whole["steps"][4:]]
    assert [step["train/grad_norm"] for step in resumed["steps"]] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("strategy", ["single", "fsdp", "deepspeed_z3"])
def test_an_adapters_checkpoint_leaves_the_base_out(strategy, saved):
    from alignlab.distributed.strategies.state import Stored
    from alignlab.run_folder.storage import STATE

    stored = Stored(f"{saved('lora', strategy)[1]}/{SAVED}/{STATE}")
    assert stored.weights and all("lora_" in name for name in stored.weights)
    assert {name for group in stored.groups for name in group["params"]} == set(stored.weights)
