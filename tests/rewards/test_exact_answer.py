import itertools
import re

import pytest

from alignlab.rewards.exact_answer import exact_answer, final_answer, last_marked, last_tagged
from alignlab.rewards.own_process import time_limit
from alignlab.rewards.xml_format import FORMS

FINAL = {
    "<reasoning>1+2: 3</reasoning><answer>3</answer>": "3",
    "<answer> 12 </answer> no, <answer>13</answer>": "13",
    "So 48/2 = 24.\n#### 72": "72",
    "It is 1,234.5 in all.": None,
}
PAIRS = [
    ("<answer>85</answer>", "85", 1),
    ("<answer>85.0</answer>", "85", 1),
    ("<answer>1,085</answer>", "1085", 1),
    ("<answer>86</answer>", "85", 0),
    ("#### 72", "Natalia sold 48+24 = 72 clips.\n#### 72", 1),
    ("the answer is 7", "7", 1),
    ("85", "<answer>85</answer>", 1),
    ("<answer>Paris</answer>", "<answer>Paris</answer>", 1),
    ("", "7", 0),
    ("Yes", "yes", 1),
    ("No", "Yes", 0),
    ("5/6", "6", 0),
    ("x = 10-3", "3", 0),
    ("so it is -3", "-3", 1),
    ("Born in 1789", "He died in 1789", 0),
    ("It costs $1,234.50.", "1234.5", 1),
]


@pytest.mark.parametrize("text", FINAL)
def test_the_final_answer(text):
    assert final_answer(text) == FINAL[text]


@pytest.mark.parametrize(("completion", "answer", "score"), PAIRS)
def test_scores(completion, answer, score):
    assert exact_answer(completion, answer) == score


EXPRESSIONS = {
    last_tagged: re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL),
    last_marked: re.compile(r"####\s*(\S.*?)\s*$", re.MULTILINE),
}
"""What the functions find, as expressions whose time grows with the third power of the line breaks."""


@pytest.mark.parametrize(
    ("find", "pieces"),
    [
        (last_tagged, ["<answer>", "</answer>", "a", "\n", " \x85"]),
        (last_marked, ["####", "#", "a", "\n", " ", "\u2028\r"]),
    ],
    ids=["tagged", "marked"],
)
def test_the_same_is_found_as_by_an_expression(find, pieces):
    for size in range(7):
        for text in map("".join, itertools.product(pieces, repeat=size)):
            found = EXPRESSIONS[find].findall(text)
            assert find(text) == (found[-1] if found else None), text


XML = {
    "strict": re.compile(r"\s*<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\s*", re.DOTALL),
    "soft": re.compile(r"\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>\s*", re.DOTALL),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_fits_what_its_expression_fits(form):
    pieces = ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "\n", "\na\n"]
    if form == "strict":
        pieces = ["<reasoning>\n", "\n</reasoning>\n<answer>\n", "\n</answer>", "\n", "a", "<answer>"]
    for size in range(8 if form == "soft" else 7):
        for text in map("".join, itertools.product(pieces, repeat=size)):
            assert FORMS[form].fits(text) == (XML[form].fullmatch(text) is not None), text


MANY = 200_000
LONG = {
    "line breaks in a tag": "<answer>" + "\n" * MANY,
    "line breaks behind a mark": "####" + "\n" * MANY,
    "line breaks between": "<answer>1" + "\n" * MANY + "2</answer>",
    "blanks behind a marked answer": "#### 1" + " " * MANY + "\n" * MANY + "x",
    "tags": "<answer>" * MANY,
    "answers": "<answer>1</answer>" * MANY,
    "marks": "####1\n" * MANY,
    "hashes": "#" * MANY,
    "digits": "1" * MANY + "x",
    "thousands": "1,234," * MANY + "x",
    "prices": "$1" * MANY,
    "minus signs": "-" * MANY,
    "decimals": "1." + "1" * MANY + "x",
    "reasoning": "<reasoning>" + "</reasoning>\n<answer>" * MANY,
    "blanks in a form": "<reasoning></reasoning>" + " " * MANY + "x</answer>",
}


@pytest.mark.parametrize("name", LONG)
def test_time_is_linear_in_the_text(name):
    """Twenty seconds for what takes a tenth of one; an expression that is quadratic would take a day."""
    with time_limit(20):
        exact_answer(LONG[name], "1")
        for form in FORMS.values():
            form.fits(LONG[name])
