"""Arguments of other tools lead to what can be typed here."""

import re
import shlex
from typing import NamedTuple

import pytest

from alignlab.cli.composition.compose import _vocabulary, compose
from alignlab.cli.composition.refusals import complete, instead_of_flag
from alignlab.config import compat, schema
from alignlab.config.schema.names import OTHER_NAMES, suggest
from alignlab.config.schema.other_tools import OTHER_TOOLS, OTHER_VALUES
from alignlab.config.schema.values import OPTIONS, instead_of
from alignlab.errors import InputError
from tests.commands import alignlab

NEEDS_MORE = {"trainer.precision=16-mixed, on a GPU", "method=grpo rollout=vllm"}
"""Advice that needs a GPU, or an environment with vLLM."""


def typed(words):
    """The words of a piece of advice, without the remark after them."""
    return [word.rstrip(",") if word[-1] == "," else word for word in shlex.split(words) if "=" in word]


@pytest.mark.parametrize("words", sorted(set(OTHER_TOOLS.values())))
def test_what_is_advised_can_be_typed(words):
    assert typed(words)
    config = schema.check(compose(typed(words)))
    if words not in NEEDS_MORE:
        compat.check(config)


def test_every_argument_leads_there():
    known = {
        "seed",
        "run_dir",
        "trainer.max_steps",
        "method.beta",
        "optimizer.lr",
        "data.packing",
        *OTHER_NAMES.values(),
    }
    wrong = [name for name in OTHER_TOOLS if not {OTHER_TOOLS[name], OTHER_NAMES.get(name)} & said(name, known)]
    assert not wrong


def said(name, known):
    """The words of the advice for an argument."""
    advice = suggest(name, known)
    return {advice.removeprefix("Type "), advice.removeprefix("Did you mean '").removesuffix("'?")}


@pytest.mark.parametrize(
    "name", ["num_generations", "max_completion_length", "lora_rank", "gradient_accumulation_steps"]
)
def test_an_argument_that_is_typed_leads_there(name):
    with pytest.raises(InputError) as refusal:
        schema.check(compose([f"{name}=1"]))
    assert OTHER_TOOLS[name] in str(refusal.value) or OTHER_NAMES[name] in str(refusal.value)


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_values_of_other_tools_lead_to_ours(key):
    for value, ours in OTHER_VALUES[key].items():
        with pytest.raises(InputError, match=rf"Type {key}={ours}\."):
            schema.check(compose([f"{key}={value}"]))
    for ours in {*OTHER_VALUES[key].values()}:
        schema.check(compose([f"{key}={ours}"]))


WITH = {"rollout": ["method=grpo"], "method.divergence": ["method=dpo"], "method.reward": ["method=grpo"]}
"""What has the key."""


@pytest.mark.parametrize("key", sorted(OPTIONS.keys() - {"method.loss"}))
def test_the_option_that_is_advised_for_a_group_can_be_typed(key):
    word = instead_of(key, 3).removeprefix("Type ").partition(",")[0]
    compat.check(schema.check(compose([*WITH.get(key, []), word])))


@pytest.mark.parametrize("words", [["method.loss=3"], ["method.loss=nll"], ["method=dpo", "method.loss=3"]])
def test_a_loss_that_is_no_loss_leads_to_those_of_the_method(words, capsys):
    assert alignlab("train", *words) == 2
    advice = capsys.readouterr().err.partition("Type method/loss= with one of: ")[2].partition(";")[0]
    first = advice.split(", ")[0]
    compat.check(schema.check(compose([*words[:-1], f"method/loss={first}"])))


class Known(NamedTuple):
    """The groups with their options, and the keys of the default config, read once."""

    by_group: dict[str, list[str]]
    names: set[str]

    def groups(self, parent=""):
        return [name for name in self.by_group if name.rpartition("/")[0] == parent]

    def options(self, group):
        return self.by_group.get(group, [])

    def keys(self, words):
        return self.names


@pytest.fixture(scope="module")
def vocabulary():
    with _vocabulary([], "train", None) as (_, groups):
        names = [name for name in groups.groups() if name not in ("hydra", "pair", "part")]
        return Known({name: groups.options(name) for name in names}, groups.keys([]))


def exists(word, vocabulary):
    key, value = word.split("=")
    return key in vocabulary.keys([]) or value in vocabulary.options(key)


def test_a_word_without_a_value_leads_to_what_exists(vocabulary):
    """Every name of other tools, group, option and key, and names that are nothing."""
    options = [option for ones in vocabulary.by_group.values() for option in ones]
    for word in {
        *OTHER_TOOLS,
        *vocabulary.groups(),
        *options,
        *vocabulary.keys([]),
        "lrr",
        "1e-4",
        "metod",
        "optimizer.lrr",
    }:
        advice = complete(word, [], vocabulary)
        words = advice.removeprefix("Type ")
        if advice.startswith("Did you mean"):
            assert {*re.findall(r"'(.+?)'", advice)} <= vocabulary.keys([]), word
        elif advice.startswith("Type ") and words not in OTHER_TOOLS.values():
            assert " with one of: " in advice or all(exists(one, vocabulary) for one in words.split(" or ")), word
        else:
            assert words in OTHER_TOOLS.values() or word in ("1e-4", "metod"), word


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("dtype", "Type model.dtype=bfloat16, or trainer.precision=bf16-mixed"),
        ("bf16", "Type trainer.precision=bf16-mixed"),
        ("sft", "Type method=sft"),
        ("learning_rate", "Did you mean 'optimizer.lr'?"),
        ("peft", "Type peft= with one of: dora, "),
        ("seed", "Type seed=VALUE"),
        ("optimizer.lrr", "Did you mean 'optimizer.lr'?"),
    ],
)
def test_advice_on_a_word_without_a_value(word, instead):
    with pytest.raises(InputError, match=re.escape(f"{word}: it is neither group=option nor key=value. {instead}")):
        compose([word])


def test_a_key_of_another_option_is_completed():
    with pytest.raises(InputError, match=r"Type method\.beta=VALUE"):
        compose(["method=dpo", "method.beta"])


@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--dtype=bf16", "Type model.dtype=bfloat16"),
        ("--per-device-train-batch-size", "Did you mean 'data.batch_size_per_device'?"),
        ("--method=dpo", "Type method= with one of: cpo, dpo"),
        ("--seed", "Type seed=VALUE"),
        ("-lr=1", "Did you mean 'optimizer.lr'?"),
        ("--confg-name", "Did you mean '--config-name'?"),
    ],
)
def test_flags_lead_to_keys(flag, instead, vocabulary):
    assert instead_of_flag(flag, ["--config-name", "--help", "-r"], vocabulary).startswith(instead)


def test_a_flag_that_does_not_exist_is_refused_with_the_key(capsys):
    assert alignlab("train", "--learning_rate", "1e-4") == 2
    told = capsys.readouterr().err
    assert "--learning_rate: there is no such flag. Did you mean 'optimizer.lr'?" in told
