"""Rows that were tokenised before: taken as they are, or refused."""

import pytest

from alignlab.data.formats import to_row
from alignlab.data.formats.conversions import convert
from alignlab.data.sources.files.record import Record
from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Text
from tests.data.tokenise.tiny_tokenizers import byte_tokenizer, token_settings


def row(**fields):
    return to_row(Record("f:1", fields), "auto", {})


@pytest.mark.parametrize(
    "mask",
    [{"labels": [-100, -100, 7, -100, 9]}, {"completion_mask": [0, 0, 1, 0, 1]}, {"assistant_masks": [0, 0, 1, 0, 1]}],
    ids=lambda mask: next(iter(mask)),
)
def test_a_sequence_is_taken_as_it_is(mask):
    found = convert(row(input_ids=[5, 6, 7, 8, 9], attention_mask=[1] * 5, level=3, **mask), Demonstration)
    tokens = tokenize(found, byte_tokenizer(), token_settings())
    assert (tokens.tokens, tokens.groups) == ([5, 6, 7, 8, 9], [[2, 3]])
    assert tokens.supervised == [False, False, True, False, True] and tokens.columns == {"level": 3}


def test_a_pair_and_a_group():
    one = convert(row(prompt_input_ids=[1, 2], chosen_input_ids=[3], rejected_input_ids=[4, 5]), Preference)
    tokens = tokenize(one, byte_tokenizer(), token_settings())
    assert (tokens.tokens, tokens.groups) == ([1, 2, 3, 4, 5], [[2, 1, 2]])
    assert tokens.supervised == [False, False, True, True, True]
    several = row(prompt_input_ids=[1], chosen_input_ids=[3], rejected_input_ids=[[4], [5, 6]])
    assert tokenize(several, byte_tokenizer(), token_settings()).groups == [[1, 1, 1, 2]]
    alone = convert(row(prompt_input_ids=[1], completion_input_ids=[3, 4]), Demonstration)
    assert tokenize(alone, byte_tokenizer(), token_settings()).groups == [[1, 2]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_ids": [1, 2]}, "neither labels nor a mask"),
        ({"input_ids": [1, 2], "labels": [-100]}, "1 numbers for 2 tokens"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, r"labels\[1\]' is neither -100 nor the token"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, "puts no token into the loss"),
        ({"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [0, 1]}, "attention_mask' hides tokens"),
        ({"input_ids": [1, "2"], "labels": [-100, 2]}, r"input_ids\[1\]' is a text"),
        ({"input_ids": "12", "labels": [-100, 2]}, "input_ids' is a text where a list"),
        ({"prompt_input_ids": [1], "chosen_input_ids": [2], "rejected_input_ids": [2]}, "holds the chosen"),
        ({"prompt_input_ids": [], "chosen_input_ids": [2], "rejected_input_ids": [3]}, "has no tokens"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        row(**fields)


def test_tokens_of_another_tokenizer_are_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(InputError, match=rf"the token 99999, and the tokenizer has {len(tokenizer)}"):
        tokenize(row(input_ids=[1, 99999], labels=[-100, 99999]), tokenizer, token_settings())


def test_a_comparison_is_no_demonstration_and_the_other_way_round():
    with pytest.raises(InputError, match="a comparison of tokens"):
        convert(row(prompt_input_ids=[1], chosen_input_ids=[2], rejected_input_ids=[3]), Demonstration)
    with pytest.raises(InputError, match="one completion of tokens"):
        convert(row(input_ids=[1, 2], labels=[-100, 2]), Preference)


def test_a_text_is_fine_tuned_on_as_a_row_of_its_own():
    text = convert(row(text="ab"), Demonstration)
    tokenizer = byte_tokenizer(eos="</s>")
    tokens = tokenize(text, tokenizer, token_settings())
    assert tokenizer.decode(tokens.tokens) == "ab</s>"
    assert (tokens.supervised, tokens.groups) == ([False, True, True], [[0, 3]])
    assert isinstance(convert(row(text="ab"), Text), Text)
