"""What must hold for every method: the result does not depend on how the work is cut."""

import functools
import os

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.plugins import MixedPrecision

from alignlab.errors import RunError
from alignlab.losses.group import group_hinge
from alignlab.run_folder.metrics_file import MetricsFile, read_metrics
from alignlab.types.loss import LossOutput
from tests.methods.prompts import ONLINE
from tests.methods.toy import (
    METHODS,
    Rows,
    class_of,
    fit,
    make_fast_policy,
    make_loader,
    make_method,
    make_rows,
    rows_for,
)

TIMED = {"train/tokens_per_second", "train/step_seconds", "time/rollout", "time/scoring"}


def rounding(metric):
    """Rewards are differences of sums over a whole completion, up to a hundred nats in float32."""
    return 2e-5 if metric.startswith(("rewards/", "kto/")) else 1e-6


NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in ("rloo", "ppo_separate") else []) for name in METHODS]
SEEN_BY_A_RANK = {"group/hardest_changed"}  # a rank remembers only the rows that it had itself


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_accumulation_invariance(name, optimizer):
    """1 x 8, 2 x 4, 8 x 1 micro-batches: the same losses, norms and weights, ragged rows and a short last window."""
    lr = {torch.optim.SGD: 0.5, torch.optim.AdamW: 1e-3}[optimizer]
    runs = {}
    for size in (8, 4, 1):
        method = make_method(name, optimizer=optimizer, lr=lr, clip=1.0)
        runs[size] = fit(method, make_loader(rows_for(name), size))
    weights, steps = runs[8]
    assert len(steps) == 4
    for size in (4, 1):
        others, other_steps = runs[size]
        assert (others - weights).norm() < 1e-6 * weights.norm(), f"{size} rows at a time"
        for one, other in zip(steps, other_steps, strict=True):
            for metric in sorted(one.keys() - TIMED):
                assert other[metric] == pytest.approx(one[metric], rel=1e-5, abs=rounding(metric)), metric


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ONLINE])
def test_ragged_last_window(name):
    """The short window of an epoch is divided by its own weight: its loss is that of its rows alone."""
    rows = rows_for(name)
    _, steps = fit(make_method(name, lr=0.0), make_loader(rows, 2, num_steps=2, order="as_is"))
    _, alone = fit(make_method(name, lr=0.0), make_loader(Rows(list(rows)[8:]), 5, num_steps=1, order="as_is"))
    assert steps[1]["train/loss"] == pytest.approx(alone[0]["train/loss"], rel=1e-6)
    assert steps[1]["progress/samples"] == 13


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_padded(name):
    flat, _ = fit(make_method(name, lr=0.1), make_loader(rows_for(name), 4))
    padded, _ = fit(make_method(name, lr=0.1, packing=False), make_loader(rows_for(name), 4, packing=False))
    assert (flat - padded).norm() < 1e-6 * flat.norm()


# Before the first step all scores are equal, and which rejected completion is the hardest is decided by rounding.
SMOOTH = {"group_dpo": {"loss": functools.partial(group_hinge, margin=1.0, inverse_temperature=1.0)}}


@pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")  # of the compiler
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("sft", "grpo") else [pytest.mark.slow]) for name in METHODS]
)
def test_every_speed_feature_changes_nothing(name):
    """All together, with prompts shared and rows collated ahead, against plain rows, padded and one at a time."""
    fast = functools.partial(make_fast_policy, head=class_of(name).head)
    workers, changes = 0 if name in ONLINE else 1, SMOOTH.get(name, {})
    flat, _ = fit(make_method(name, lr=0.1, policy=fast, **changes), make_loader(rows_for(name), 4, workers=workers))
    padded = make_loader(rows_for(name), 1, packing=False)
    plain, _ = fit(make_method(name, lr=0.1, packing=False, **changes), padded)
    assert (flat - plain).norm() < 1e-6 * plain.norm()


def test_collating_ahead_changes_nothing():
    here, _ = fit(make_method("sft"), make_loader(make_rows(), 4))
    ahead, _ = fit(make_method("sft"), make_loader(make_rows(), 4, workers=1))
    assert torch.equal(here, ahead)


def test_what_is_logged_once_per_rollout_stands_at_its_first_step_only(tmp_path):
    logger = MetricsFile(path=tmp_path / "metrics.csv", first_step=0)
    fit(make_method("grpo"), make_loader(rows_for("grpo"), 8), logger=logger, log_every_n_steps=1)
    rows = read_metrics(logger.path)
    assert [row["progress/step"] for row in rows if "reward/mean" in row] == [1, 3]
    assert [row["progress/step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]


@pytest.mark.parametrize("clip", [None, 0.05])
def test_norms_are_logged_before_and_after_clipping(clip):
    _, steps = fit(make_method("sft", clip=clip), make_loader(make_rows(), 4, num_steps=1))
    assert steps[0]["train/grad_norm"] > 0.05
    if clip:
        assert steps[0]["train/grad_norm_clipped"] == pytest.approx(clip, rel=1e-4)


def test_clipping_is_that_of_the_whole_step():
    """With SGD the clipped update has exactly the length lr · clip."""
    before = torch.cat([p.flatten() for p in make_method("sft").factories.make_policy().parameters()])
    after, _ = fit(make_method("sft", lr=1.0, clip=0.05), make_loader(make_rows(), 1, num_steps=1))
    assert (after - before).norm().item() == pytest.approx(0.05, rel=1e-3)


def _train_rank(rank, num_ranks, port, folder):
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks), LOCAL_WORLD_SIZE=str(num_ranks), TORCHELASTIC_RUN_ID="test", GROUP_RANK="0",
    )  # fmt: skip
    torch.set_num_threads(1)
    for name in METHODS:
        loader = make_loader(rows_for(name), 2, rank=rank, num_ranks=num_ranks)
        result = fit(make_method(name, clip=1.0), loader, strategy="ddp", devices=num_ranks)
        torch.save(result, f"{folder}/{name}-{rank}.pt")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, free_port):
    """Every method trained by one pair of processes: folder of what each rank came to."""
    folder = tmp_path_factory.mktemp("two-ranks")
    mp.spawn(_train_rank, args=(2, free_port, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_world_size_invariance(name, two_ranks):
    """Two processes give the weights and metrics of one, with a last window that leaves a rank short of rows."""
    alone, steps = fit(make_method(name, clip=1.0), make_loader(rows_for(name), 2))
    for rank in range(2):
        weights, rank_steps = torch.load(two_ranks / f"{name}-{rank}.pt")
        assert (weights - alone).norm() < 1e-6 * alone.norm()
        for one, other in zip(steps, rank_steps, strict=True):
            for metric in sorted(one.keys() - TIMED - SEEN_BY_A_RANK):
                assert other[metric] == pytest.approx(one[metric], rel=1e-5, abs=rounding(metric)), metric


def test_half_precision_with_a_scaler_trains_and_unscales_once():
    """The plugin that CUDA runs use, on the CPU: the norms are those of the unscaled gradient."""
    _, expected = fit(make_method("sft", lr=0.05, clip=1.0), make_loader(make_rows(), 4))
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=128.0))
    _, steps = fit(make_method("sft", lr=0.05, clip=1.0), make_loader(make_rows(), 4), plugins=[plugin])
    assert [step["progress/step"] for step in steps] == [1, 2, 3, 4]
    for one, other in zip(expected, steps, strict=True):
        assert other["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=0.05)
        assert other["train/loss"] == pytest.approx(one["train/loss"], rel=0.01)


def test_a_gradient_that_is_not_finite_changes_nothing_and_ends_the_run():
    method = make_method("sft", lr=0.5, clip=1.0)
    compute = method.compute_loss
    method.compute_loss = lambda batch: LossOutput([term * float("inf") for term in compute(batch).terms])
    before = torch.cat([p.flatten() for p in make_method("sft").factories.make_policy().parameters()])
    weights, steps = fit(method, make_loader(make_rows(), 4, num_steps=2))
    assert torch.equal(weights, before)
    assert not torch.tensor(steps[0]["train/grad_norm"]).isfinite()
    with pytest.raises(RunError, match="not finite"):
        fit(method, make_loader(make_rows(), 4, num_steps=8))
