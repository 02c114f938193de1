"""Arguments of other tools lead to what can be typed here."""

import shlex

import pytest

from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.config.schema.names import OTHER_NAMES, suggest
from alignlab.config.schema.other_tools import OTHER_TOOLS
from alignlab.errors import InputError


def typed(words):
    """The words of a piece of advice, without the remark after them."""
    return [word.rstrip(",") if word[-1] == "," else word for word in shlex.split(words) if "=" in word]


@pytest.mark.parametrize("words", sorted(set(OTHER_TOOLS.values())))
def test_what_is_advised_can_be_typed(words):
    assert typed(words)
    schema.check(compose(typed(words)))


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
