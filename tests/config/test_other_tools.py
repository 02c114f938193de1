"""Arguments of other tools lead to what can be typed here."""

import shlex

import pytest

from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.config.schema.names import OTHER_NAMES
from alignlab.config.schema.other_tools import OTHER_TOOLS
from alignlab.errors import InputError


def typed(words):
    """The words of a piece of advice, without the remark after them."""
    return [word.rstrip(",") if word[-1] == "," else word for word in shlex.split(words) if "=" in word]


@pytest.mark.parametrize("words", sorted(set(OTHER_TOOLS.values())))
def test_what_is_advised_can_be_typed(words):
    assert typed(words)
    schema.check(compose(typed(words)))


@pytest.mark.parametrize("name", sorted(OTHER_TOOLS))
def test_every_argument_leads_there_or_is_one_of_ours(name):
    try:
        schema.check(compose([f"{name}=1"]))
    except InputError as error:
        assert OTHER_TOOLS[name] in str(error) or OTHER_NAMES[name] in str(error)
    else:
        pytest.fail(f"{name} is a key of ours at the root: no advice is needed")
