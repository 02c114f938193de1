"""DeepSpeed files as users bring them: taken over, or refused with both values."""

import json
from functools import partial

import pytest
import torch

from alignlab.cli.composition.compose import compose
from alignlab.cli.composition.deepspeed_file import take_over_file
from alignlab.config import compat, schema
from alignlab.distributed.strategies.config_file import warmup, warmup_cosine
from alignlab.errors import InputError, InputErrors

FILE = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": [0.9, 0.95], "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 5e-5, "warmup_num_steps": 500}},
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "contiguous_gradients": True},
    "gradient_clipping": 0.5,
    "wall_clock_breakdown": False,
}


def composed(tmp_path, file, *words, strategy="deepspeed_z2"):
    """The config as ``alignlab train`` gets to see it."""
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(file))
    words = [f"strategy={strategy}", f"strategy.config_file={path}", *words]
    cfg = compose(words)
    plain = schema.check(cfg, change=partial(take_over_file, words=words))
    compat.check(plain)
    return plain


@pytest.mark.parametrize("section", ["zero_optimization", "fp16", "bf16", "optimizer", "scheduler"])
@pytest.mark.parametrize("value", [5, [], "auto", None, True])
def test_a_section_of_another_type_is_refused(tmp_path, section, value):
    with pytest.raises(InputError, match=f"with {section}: it should be an object"):
        composed(tmp_path, FILE | {section: value})


ODD_PARTS = [({}, "type"), ({"type": []}, "type"), ({"type": "x", "params": 5}, "params")]


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
@pytest.mark.parametrize(("value", "part"), ODD_PARTS)
def test_a_section_with_an_odd_part_is_refused(tmp_path, section, value, part):
    with pytest.raises(InputError, match=rf"with {section}\.{part}: it should be"):
        composed(tmp_path, FILE | {section: value})


@pytest.mark.parametrize("strategy", ["ddp", "single"])
def test_a_file_for_another_strategy_is_refused(tmp_path, strategy):
    with pytest.raises(InputError, match=r"strategy\.config_file.*there is no such key"):
        composed(tmp_path, FILE, strategy=strategy)


def test_everything_is_taken_over(tmp_path):
    config = composed(tmp_path, FILE)
    assert config["optimizer"] == {
        "_target_": "torch.optim.AdamW", "_partial_": True, "lr": 5e-5, "betas": [0.9, 0.95],
        "eps": 1e-8, "weight_decay": 0.01,
    }  # fmt: skip
    assert config["scheduler"]["warmup_steps"] == 500
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["trainer"]["gradient_clip_val"] == 0.5
    assert (config["data"]["global_batch_size"], config["data"]["batch_size_per_device"]) == (32, 4)
    own = config["strategy"]["config"]
    ours = {"reduce_bucket_size": 20_000_000}  # of what the file leaves open
    told = {"stage": 2, "overlap_comm": False, "contiguous_gradients": True}
    assert own["zero_optimization"] == told | ours
    assert "optimizer" not in own and "gradient_accumulation_steps" not in own
    assert config["strategy"]["config_file"] is None, "a saved config is whole by itself"


@pytest.mark.parametrize(
    ("typed", "both"),
    [
        ("optimizer.lr=1e-3", ("0.001", "5e-05")),
        ("optimizer=sgd", ("torch.optim.SGD", "torch.optim.AdamW")),
        ("scheduler=cosine", ("alignlab.optim.schedules.cosine", "WarmupLR")),
        ("trainer.precision=32-true", ("32-true", "bf16-mixed")),
        ("trainer.gradient_clip_val=1.0", ("1.0", "0.5")),
        ("data.global_batch_size=64", ("64", "32")),
        ("data.batch_size_per_device=8", ("8", "4")),
    ],
)
def test_a_contradiction_is_refused_with_both_values(tmp_path, typed, both):
    with pytest.raises(InputError) as caught:
        composed(tmp_path, FILE, typed)
    assert all(value in str(caught.value) for value in both)
    assert typed.partition("=")[0] in caught.value.asked


def test_contradictions_come_together(tmp_path):
    with pytest.raises(InputErrors) as caught:
        composed(tmp_path, FILE, "optimizer.lr=1e-3", "trainer.precision=32-true", strategy="deepspeed_z3")
    assert len(caught.value.errors) == 3
    assert "strategy=deepspeed_z2" in str(caught.value)


def test_what_is_typed_alike_is_no_contradiction(tmp_path):
    composed(tmp_path, FILE, "optimizer=adamw", "optimizer.lr=5e-5", "data.global_batch_size=32")


def test_a_key_typed_under_the_config_wins(tmp_path):
    config = composed(tmp_path, FILE, "strategy.config.bf16.enabled=false", "strategy.config.steps_per_print=7")
    assert config["trainer"]["precision"] == "32-true"
    assert config["strategy"]["config"]["steps_per_print"] == 7


@pytest.mark.parametrize(
    ("section", "value"),
    [("optimizer", {"type": "OneBitAdam"}), ("scheduler", {"type": "OneCycle"})],
)
def test_what_has_no_counterpart_is_refused(tmp_path, section, value):
    with pytest.raises(InputError, match=value["type"]):
        composed(tmp_path, FILE | {section: value})


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    for file in (path, tmp_path / "absent.json"):
        cfg = compose(["strategy=deepspeed_z2", f"strategy.config_file={file}"])
        with pytest.raises(InputError, match=r"json"):
            schema.check(cfg, change=partial(take_over_file, words=()))


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("one_gpu_zero1", "deepspeed_z1"),
        ("one_node_zero2", "deepspeed_z2"),
        ("many_nodes_zero3_cpu_offload", "deepspeed_z3_offload"),
    ],
)
def test_files_of_a_real_project_are_taken_over(shared, tmp_path, name, strategy):
    file = json.loads((shared / "data" / "deepspeed" / f"{name}.json").read_text())
    config = composed(tmp_path, file, "trainer.accelerator=gpu", strategy=strategy)
    assert config["trainer"]["precision"] == "16-mixed"
    assert config["data"]["global_batch_size"] == file["train_batch_size"]
    assert config["optimizer"]["lr"] == file["optimizer"]["params"]["lr"]
    on_cpu = composed(tmp_path, file, "strategy.config.fp16.enabled=false", strategy=strategy)
    assert on_cpu["trainer"]["precision"] == "32-true"


def test_activation_checkpointing_and_checkpoints_become_ours(tmp_path):
    file = FILE | {"activation_checkpointing": {"partition_activations": True}, "steps_per_checkpoint": 7}
    config = composed(tmp_path, file)
    assert config["model"]["gradient_checkpointing"] is True
    assert config["checkpoint"]["every_n_steps"] == 7
    assert not {"activation_checkpointing", "steps_per_checkpoint"} & config["strategy"]["config"].keys()
    off = FILE | {"activation_checkpointing": {"partition_activations": False}}
    assert composed(tmp_path, off)["model"]["gradient_checkpointing"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient_cliping": 1.0}, "with gradient_cliping: .*no setting of that name.*'gradient_clipping'"),
        ({"zero_optimization": {"stage": 2, "overlap_com": True}}, r"zero_optimization\.overlap_com.*'overlap_comm'"),
        ({"train_batch_size": 30}, r"train_batch_size=30: it is no multiple of 4 × 2 rows.*24 would do"),
        ({"train_batch_size": 4}, r"train_batch_size=4: it is no multiple of 4 × 2 rows.*8 would do"),
    ],
)
def test_misspelt_names_and_impossible_totals_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        composed(tmp_path, FILE | change)


@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize("total", [30, 8])
def test_cosine_is_that_of_deepspeed(kind, total):
    from deepspeed.runtime.lr_schedules import WarmupCosineLR

    ours, theirs = (torch.optim.SGD([torch.zeros(1)], lr=0.1) for _ in range(2))
    given = {"min_ratio": 0.1, "end_ratio": 0.01, "warmup_steps": 10, "kind": kind, "total_steps": total}
    schedule = warmup_cosine(ours, num_training_steps=40, **given)
    options = {"warmup_min_ratio": 0.1, "cos_min_ratio": 0.01, "warmup_num_steps": 10, "warmup_type": kind}
    reference = WarmupCosineLR(theirs, total_num_steps=total, **options)
    for step in range(40):
        reference.step(step)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"]), step
        schedule.step()


@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize("total", [None, 30])
def test_warmup_is_that_of_deepspeed(kind, total):
    """Rate by rate, against DeepSpeed's own schedules."""
    from deepspeed.runtime.lr_schedules import WarmupDecayLR, WarmupLR

    ours, theirs = (torch.optim.SGD([torch.zeros(1)], lr=0.1) for _ in range(2))
    schedule = warmup(
        ours, num_training_steps=40, min_lr=0.01, max_lr=0.5, warmup_steps=10, kind=kind, total_steps=total
    )
    options = {"warmup_min_lr": 0.01, "warmup_max_lr": 0.5, "warmup_num_steps": 10, "warmup_type": kind}
    reference = WarmupDecayLR(theirs, total_num_steps=total, **options) if total else WarmupLR(theirs, **options)
    for step in range(40):
        reference.step(step)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"]), step
        schedule.step()
