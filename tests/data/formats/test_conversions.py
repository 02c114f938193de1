"""Conversions between kinds of rows."""

import pytest

from alignlab.data.formats.conversions import CONVERSIONS, convert
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Prompt, Text, Unpaired, WholeText

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "a"}
BAD = {"role": "assistant", "content": "b"}
COMMON = {"origin": "f:1", "columns": {"level": 2}}
ROWS = {
    Text: Text(text="t", **COMMON),
    Demonstration: Demonstration(messages=(USER, GOOD), tools=("f",), **COMMON),
    Preference: Preference(prompt=(USER,), chosen=(GOOD,), rejected=((BAD,),), tools=("f",), **COMMON),
    Unpaired: Unpaired(prompt=(USER,), completion=(GOOD,), desirable=True, **COMMON),
    Prompt: Prompt(prompt=(USER,), tools=("f",), **COMMON),
}


def test_the_conversions():
    assert convert(ROWS[Preference], Demonstration) == ROWS[Demonstration]
    assert convert(ROWS[Preference], Prompt) == ROWS[Prompt]
    asked = convert(ROWS[Demonstration], Prompt)
    assert asked.prompt == (USER,) and asked.tools == ("f",) and asked.columns == {"level": 2, "completion": "a"}
    assert convert(ROWS[Demonstration], Text) == Text(text="q\n\na", **COMMON)


def test_a_prompt_ends_with_the_last_user_message():
    row = Demonstration(messages=(USER, BAD, USER, GOOD), **COMMON)
    assert convert(row, Prompt).prompt == (USER, BAD, USER)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("source", ROWS)
def test_every_other_conversion_is_refused_with_what_is_possible(source, kind):
    if source is kind:
        assert convert(ROWS[source], kind) is ROWS[source]
    elif (source, kind) in CONVERSIONS:
        whole = {(Text, Demonstration): WholeText}  # a text is no dialogue, but trains like one
        assert isinstance(convert(ROWS[source], kind), whole.get((source, kind), kind))
    else:
        with pytest.raises(InputError) as refusal:
            convert(ROWS[source], kind)
        assert f"f:1: the method needs a {kind.__name__} (" in str(refusal.value)
        assert f"the row is a {source.__name__} (" in str(refusal.value)
