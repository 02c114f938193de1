"""The precision of a config that leaves it open follows the device."""

import pytest
import torch

from alignlab.cli import estimate
from alignlab.cli.composition.compose import compose
from alignlab.config import schema


def precision(*words):
    return schema.check(compose(words))["trainer"]["precision"]


@pytest.fixture
def on_gpus(monkeypatch):
    """Makes PyTorch report GPUs of these compute capabilities."""

    def report(*capabilities):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: capabilities[number])

    return report


@pytest.mark.parametrize(
    ("capabilities", "words", "expected"),
    [
        ((), [], "32-true"),
        (((9, 0), (8, 0)), [], "bf16-mixed"),
        (((8, 0), (7, 5)), [], "32-true"),
        (((9, 0),), ["trainer.accelerator=cpu"], "32-true"),
        (((9, 0),), ["trainer.precision=32-true"], "32-true"),
        (((9, 0),), ["strategy=fsdp", "strategy.param_dtype=bfloat16"], "32-true"),
        ((), ["strategy=deepspeed_z3", "+strategy.config.bf16.enabled=true"], "bf16-mixed"),
        (((9, 0),), ["strategy=deepspeed_z3", "+strategy.config.fp16.enabled=true"], "16-mixed"),
    ],
)
def test_what_is_left_open_follows_the_device(on_gpus, capabilities, words, expected):
    on_gpus(*capabilities)
    assert precision(*words) == expected


def test_an_estimate_follows_the_hardware_that_it_names(on_gpus):
    on_gpus()
    for words, expected in (
        (["estimate.hardware=h100x8", "strategy=fsdp"], "bf16-mixed"),
        (["estimate.hardware=h100", "trainer.precision=32-true"], "32-true"),
        ([], "32-true"),
    ):
        config = estimate.check(compose(words, "estimate"))
        assert config["trainer"]["precision"] == expected
