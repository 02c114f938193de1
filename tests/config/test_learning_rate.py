"""The learning rate of a config that leaves it open follows the method and the adapter."""

import pytest

from alignlab.assemble import in_words
from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.config.learning_rate import with_learning_rate

OWN = ["model.path=somewhere"]


def rate(*words):
    return schema.check(compose(words))["optimizer"]["lr"]


@pytest.mark.parametrize(
    ("method", "full", "adapter"),
    [
        ("sft", 2e-5, 2e-4),
        ("pretrain", 3e-4, 3e-4),
        ("reward_model", 1e-5, 1e-4),
        *(
            (method, 1e-6, 1e-5)
            for method in ("dpo", "group_dpo", "simpo", "orpo", "cpo", "kto", "grpo", "rloo", "ppo")
        ),
    ],
)
def test_weights_of_ones_own_get_the_published_rate(method, full, adapter):
    assert rate(f"method={method}", *OWN) == full
    assert rate(f"method={method}", *OWN, "peft=lora") == rate(f"method={method}", *OWN, "peft=qlora") == adapter


def test_a_typed_rate_and_those_of_the_small_models_stay():
    assert rate(*OWN, "optimizer.lr=0.5") == 0.5
    assert rate() == rate("model=scratch") == rate("method=pretrain") == 1e-3
    assert rate("method=dpo") == 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "cpu_adamw"])
def test_every_kind_of_adamw_leaves_it_open(optimizer):
    assert rate("method=dpo", *OWN, f"optimizer={optimizer}") == 1e-6


def test_other_optimizers_have_rates_of_their_own():
    assert rate(*OWN, "optimizer=lion") == 2e-4 and rate(*OWN, "optimizer=sgd") == 0.1


@pytest.mark.parametrize("method", [{"_target_": "nowhere.Method"}, {}, None])
def test_a_method_that_cannot_be_found_is_not_reported_as_a_wrong_rate(method):
    config = {"optimizer": {"lr": None}, "method": method, "peft": None, "model": {"path": "somewhere"}}
    assert with_learning_rate(config)["optimizer"]["lr"] == 2e-5


def test_the_start_card_says_it_in_words():
    config = schema.check(compose(["method=dpo", *OWN, "scheduler=linear", "scheduler.warmup_steps=10"]))
    assert in_words(config) == "AdamW, learning rate 1e-06, linear schedule, warm-up 10 steps, β 0.1"
    config = schema.check(compose(["optimizer=lion", "scheduler=constant"]))
    assert in_words(config).startswith("Lion, learning rate 0.0002, constant schedule, warm-up 0.03 of the run")
