"""Every strategy x method x adapter on two processes comes to what one process comes to; the rest is refused.

``ALIGNLAB_WRITE_TABLE=1 python -m pytest tests/strategies/test_matrix.py`` writes the table in docs/strategies.md.
"""

import os
from pathlib import Path

import pytest
import torch

from alignlab.models.adapters import reattach
from alignlab.models.export import logits
from alignlab.models.load import locate, open_weights
from alignlab.training.strategies.zero import has_asynchronous_io
from tests.strategies import cells, jobs
from tests.strategies.pair import RankError

COMPARED = ("train/loss", "train/grad_norm", "train/grad_norm_clipped", "train/lr")
ONE_METHOD_IS_ENOUGH = ("qlora_8bit",)
CELLS = [
    (method, peft, strategy)
    for method in cells.METHODS
    for peft in cells.PEFTS
    for strategy in cells.STRATEGIES
    if method == cells.METHODS[0] or peft not in ONE_METHOD_IS_ENOUGH
]


def name(cell):
    return "-".join(cell)


def is_quick(cell):
    """What runs every time: the main jobs everywhere, the others where sharding could hurt most."""
    method, peft, strategy = cell
    if method in ("sft", "pretrain"):
        return True
    return strategy in ("fsdp", "deepspeed_z3") and peft in (("full", "lora") if method == "dpo" else ("full",))


ALL_CELLS = [pytest.param(cell, id=name(cell), marks=[] if is_quick(cell) else pytest.mark.slow) for cell in CELLS]


@pytest.mark.parametrize("cell", ALL_CELLS)
def test_same_as_one_process(cell, alone, together, tmp_path):
    """Loss, norms, final weights and logits of single, to 1e-5; and the model that was written gives these logits."""
    method, peft, strategy = cell
    if cells.refusal(*cell):
        pytest.skip("refused, see below")
    if "nvme" in strategy and not has_asynchronous_io():
        pytest.skip("libaio is not installed")
    disk = {"config.zero_optimization.offload_optimizer.nvme_path": str(tmp_path)} if "nvme" in strategy else None
    expected = alone(method, peft)
    ranks = together(*cell, to=str(tmp_path / "model"), changes=disk)
    assert len(expected["steps"]) == 5
    for rank in ranks:
        for ours, theirs in zip(rank["steps"], expected["steps"], strict=True):
            for metric in COMPARED:
                assert ours[metric] == pytest.approx(theirs[metric], rel=1e-5), metric
        assert torch.allclose(rank["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
    assert_same_weights(ranks[0]["weights"], expected["weights"])
    assert torch.allclose(logits(reopened(tmp_path / "model", peft), jobs.EXAMPLE), ranks[0]["logits"], atol=1e-5)


def assert_same_weights(ours, theirs):
    """Relative distance of all weights as one vector; packed 4- and 8-bit weights are frozen and kept elsewhere."""
    kept = {key for key, tensor in theirs.items() if tensor.is_floating_point() and "base_layer" not in key}
    assert kept <= ours.keys()
    ours, theirs = (torch.cat([tensors[key].flatten() for key in sorted(kept)]) for tensors in (ours, theirs))
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def reopened(folder: Path, peft: str):
    """What a process that never saw the training reads."""
    place = locate(str(folder))
    node = jobs.choices(peft, "single")[0] or {}
    quantization = jobs.instantiate(node.get("quantization"))
    model = open_weights(place, torch.float32, "forest", quantization=quantization)
    return reattach(model, place.adapter) if place.adapter else model


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cells.refusal(*cell)], ids=name)
def test_what_is_refused_does_not_run(cell, together):
    """Each refusal stands on a run that fails without it."""
    assert cells.refusal(*cell).instead.startswith("Type")
    with pytest.raises((RankError, Exception), match="CB"):
        together(*cell)


@pytest.mark.slow
def test_the_table_in_the_docs_is_current():
    if os.environ.get("ALIGNLAB_WRITE_TABLE"):
        cells.write()
    assert cells.written() == cells.table()
