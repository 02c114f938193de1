"""Every strategy x method x adapter on two processes comes to what one process comes to; the rest is refused.

``ALIGNLAB_WRITE_TABLE=1 python -m pytest tests/distributed/strategies/test_matrix.py`` writes the table of
docs/strategies.md.
"""

import os
from itertools import product

import pytest
import torch
from tests.distributed.strategies import cells, jobs
from tests.distributed.strategies.pair import RankError
from tests.methods.prompts import ONLINE

from alignlab.distributed.strategies.zero import has_asynchronous_io
from alignlab.models.export import logits

COMPARED = ("train/loss", "train/grad_norm", "train/grad_norm_clipped", "train/lr")
SAMPLED = ("reward/", "completion_tokens/", "truncated_fraction", "zero_std_groups")
ONE_METHOD_IS_ENOUGH = ("qlora_8bit",)
REFUSED = {("sft", "qlora_8bit", "fsdp"): "CB"}
"""Cells, and what their run would fail with."""
CELLS = [
    cell
    for cell in product(cells.METHODS, cells.PEFTS, cells.STRATEGIES)
    if cell not in REFUSED and (cell[0] == cells.METHODS[0] or cell[1] not in ONE_METHOD_IS_ENOUGH)
]


def name(cell):
    return "-".join(cell)


SHARDED = ("fsdp", "deepspeed_z3")
QUICK = {
    *product(("sft", "pretrain"), cells.PEFTS, cells.STRATEGIES),
    *product(("dpo", "group_dpo", "orpo", "simpo", "cpo", "kto"), ("full",), SHARDED),
    *product(("dpo",), ("lora",), SHARDED),
    ("grpo", "full", "ddp"),
    ("grpo", "full", "deepspeed_z3"),
    ("grpo", "lora", "fsdp"),
}
"""What runs every time: the main jobs everywhere, the others where sharding could hurt most."""
ALL_CELLS = [pytest.param(cell, id=name(cell), marks=[] if cell in QUICK else pytest.mark.slow) for cell in CELLS]


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_same_as_one_process(cell, alone, together, tmp_path):
    """Loss, norms, final weights and logits of single, to 1e-5; and the model that was written gives these logits."""
    method, peft, strategy = cell
    assert cells.refusal(*cell) is None
    if "nvme" in strategy and not has_asynchronous_io():
        pytest.skip("libaio is not installed")
    disk = None
    if "nvme" in strategy:  # DeepSpeed's own buffer is 2 GB per process, and stays as long as that
        offload = "config.zero_optimization.offload_"
        disk = {f"{offload}optimizer.nvme_path": str(tmp_path), f"{offload}param.buffer_size": 1_000_000}
    ranks = together(*cell, to=str(tmp_path / "model"), changes=disk)
    assert_same_run(ranks, alone(method, peft), samples=method in ONLINE)
    written = logits(jobs.reopen(tmp_path / "model", peft, method), jobs.EXAMPLE)
    assert torch.allclose(written, ranks[0]["logits"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peft", "strategy"), list(product(("full", "lora"), ("ddp", "fsdp", "deepspeed_z2", "deepspeed_z3")))
)
def test_a_critic_of_its_own_is_spread_too(peft, strategy, alone, together):
    assert_same_run(together("ppo_separate", peft, strategy), alone("ppo_separate", peft), samples=True)


def assert_same_run(ranks, expected, samples):
    """To 1e-5, and what was sampled earned the same to the digit.

    A loss that is itself a difference, of log-probabilities or of advantages, is known to 1e-6: float32 tells sums of
    log-probabilities of a size of 10 apart no better.
    """
    assert len(expected["steps"]) == 5
    for rank in ranks:
        for ours, theirs in zip(rank["steps"], expected["steps"], strict=True):
            for metric in COMPARED:
                limits = {"rel": 1e-5, "abs": 1e-6 if metric == "train/loss" else None}
                assert ours[metric] == pytest.approx(theirs[metric], **limits), metric
            earned = [{key: value for key, value in one.items() if key.startswith(SAMPLED)} for one in (ours, theirs)]
            assert earned[0] == earned[1] and bool(earned[0]) == samples
        assert torch.allclose(rank["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    assert_same_weights(ranks[0]["weights"], expected["weights"])


def assert_same_weights(ours, theirs):
    """Relative distance of all weights as one vector; packed 4- and 8-bit weights are frozen and kept elsewhere."""
    kept = {key for key, tensor in theirs.items() if tensor.is_floating_point() and "base_layer" not in key}
    assert kept <= ours.keys()
    ours, theirs = (torch.cat([tensors[key].flatten() for key in sorted(kept)]) for tensors in (ours, theirs))
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("cell", REFUSED, ids=name)
def test_what_is_refused_does_not_run(cell, together):
    """Each refusal stands on a run that fails without it."""
    assert cells.refusal(*cell).instead.startswith("Type")
    with pytest.raises((RankError, Exception), match=REFUSED[cell]):
        together(*cell)


@pytest.mark.slow
def test_the_table_in_the_docs_is_current():
    if os.environ.get("ALIGNLAB_WRITE_TABLE"):
        cells.write()
    assert cells.written() == cells.table()
