"""Combinations that cannot work are refused with all reasons; what works is not."""

import pytest
from lightning.pytorch import callbacks
from omegaconf import OmegaConf

from alignlab.cli.composition.compose import compose
from alignlab.config import compat
from alignlab.errors import InputError, InputErrors


def check(*words: str) -> None:
    compat.check(OmegaConf.to_container(compose(words), resolve=True))


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["peft=prefix", "data.packing=true"], "data.packing=false"),
        (["trainer.precision=16-mixed", "trainer.accelerator=cpu"], "trainer.precision=bf16-mixed"),
        (["trainer.accumulate_grad_batches=4"], "data.global_batch_size="),
        (["data.streaming=true", "data.order=by_length"], "data.order=shuffled"),
        (["data.order=curriculum"], "data.order_column="),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_type(words, instead):
    with pytest.raises(InputError) as caught:
        check(*words)
    assert instead in caught.value.instead
    assert all(word.split("=")[0] in caught.value.asked for word in words)


LIGHTNING = "callbacks.mine._target_=lightning.pytorch.callbacks."


@pytest.mark.parametrize("name", compat.CALLBACKS)
def test_callbacks_of_lightning_that_cannot_work_are_refused(name):
    assert hasattr(callbacks, name)
    with pytest.raises(InputError, match=rf"callbacks\.mine\._target_=lightning\.pytorch\.callbacks\.{name}: "):
        check(LIGHTNING + name)


@pytest.mark.parametrize(
    "words", [[f"{LIGHTNING}RichProgressBar", "callbacks.progress=null"], [f"{LIGHTNING}LearningRateMonitor"]]
)
def test_other_callbacks_of_lightning_are_not(words):
    check(*words)


def test_all_reasons_come_together():
    with pytest.raises(InputErrors) as caught:
        check("peft=prefix", "data.packing=true", "trainer.precision=16-mixed", "trainer.accelerator=cpu")
    assert len(caught.value.errors) == 2


def test_quantisation_needs_its_library(monkeypatch):
    check("peft=qlora")
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="bitsandbytes"):
        check("peft=qlora")
    check("peft=lora")


@pytest.mark.parametrize(
    "words",
    [
        ["data.batch_size_per_device=128", "data.global_batch_size=64"],
        ["trainer.precision=bf16-mixed", "trainer.accelerator=cpu"],
        ["data.streaming=true", "data.order=shuffled"],
        ["data.order=curriculum", "data.order_column=level"],
        ["method=pretrain", "peft=lora"],
    ],
)
def test_what_works_is_not_refused(words):
    check(*words)
