"""Odd pairs and groups, line by line: what becomes of each, and why. The rules stand in docs/own_data.md.

The lines are written here; the same are read from real rows where these lie beside the repository.
"""

import json
from collections import Counter

import pytest

from alignlab.data.formats import to_row
from alignlab.data.sources.files import Record, read
from alignlab.data.sources.local import Files
from alignlab.data.tokenise.rows import tokenize, tokenize_counted
from alignlab.errors import InputError
from alignlab.types.rows import Preference
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

TRIMMING = CHATML.replace("message.content", "(message.content | trim)")
NO_MESSAGE = "a text where a message with role and content is needed"

# Lines from 1. A text: the refusal. Else prompt and chosen completion are those of line 1, which is sound, and this
# says what is rejected: in words for pairs, by number for groups.
PAIRS = {
    1: ["rejected"],
    2: "field 'rejected' holds the chosen completion",
    3: "field 'rejected' is empty",
    4: "field 'chosen' is empty",
    5: "field 'rejected' is missing",
    6: "field 'chosen' is missing",
    7: "field 'prompt' is missing",
    8: "field 'prompt' is empty",
    9: "field 'chosen' is null where a text is needed",
    10: f"field 'chosen[0]' is {NO_MESSAGE}",
    11: ["rejected"],  # from/value messages
    12: ["rejected"],  # dialogues that begin with the prompt
    13: "field 'rejected' has another prompt than 'chosen'",
    14: ["rejected"],  # lists of one assistant message
    15: ["chosen and a blank"],
    16: ["half of chosen"],
    17: "field 'chosen' is a number where a text is needed",
}
GROUPS = {
    1: 3,
    2: 1,
    3: "field 'rejected' is an empty list",
    4: 1,  # a text instead of a list
    5: "field 'rejected' is null where a text is needed",
    6: "field 'rejected' is missing",
    7: 3,  # the same completion three times
    8: "field 'rejected' holds the chosen completion",
    9: "field 'rejected[1]' is empty",
    10: "field 'rejected[1]' is null where a text is needed",
    11: f"field 'chosen[0]' is {NO_MESSAGE}",
    12: "field 'rejected.role' is missing",
    13: 31,
    14: "field 'chosen' is empty",
    15: "field 'prompt' is empty",
}
FILES = {"pairs_bad": PAIRS, "groups_bad": GROUPS}
LINES = [(name, line) for name, lines in FILES.items() for line in lines]

ASK, GOOD, POOR = user("Name a fruit."), assistant("A pear, green."), assistant("A stone.")
PAIR = {"prompt": ASK["content"], "chosen": GOOD["content"], "rejected": POOR["content"]}
WORSE = ["A stone.", "A chair.", "A cloud."]
GROUP = PAIR | {"rejected": WORSE}


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


OWN = {
    "pairs_bad": [
        PAIR,
        PAIR | {"rejected": PAIR["chosen"]},
        PAIR | {"rejected": ""},
        PAIR | {"chosen": ""},
        without(PAIR, "rejected"),
        without(PAIR, "chosen"),
        without(PAIR, "prompt"),
        PAIR | {"prompt": ""},
        PAIR | {"chosen": None},
        PAIR | {"chosen": [PAIR["chosen"]], "rejected": [PAIR["rejected"]]},
        PAIR | {key: {"from": "gpt", "value": PAIR[key]} for key in ("chosen", "rejected")},
        PAIR | {"chosen": [ASK, GOOD], "rejected": [ASK, POOR]},
        PAIR | {"chosen": [ASK, GOOD], "rejected": [user("Name a tree."), POOR]},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [POOR]},
        PAIR | {"rejected": PAIR["chosen"] + " "},
        PAIR | {"rejected": PAIR["chosen"][: len(PAIR["chosen"]) // 2]},
        PAIR | {"chosen": 7, "rejected": 8},
    ],
    "groups_bad": [
        GROUP,
        GROUP | {"rejected": WORSE[:1]},
        GROUP | {"rejected": []},
        GROUP | {"rejected": WORSE[0]},
        GROUP | {"rejected": None},
        without(GROUP, "rejected"),
        GROUP | {"rejected": WORSE[:1] * 3},
        GROUP | {"rejected": [GROUP["chosen"], *WORSE]},
        GROUP | {"rejected": [WORSE[0], "", WORSE[1]]},
        GROUP | {"rejected": [WORSE[0], None, 3]},
        GROUP | {"chosen": [GROUP["chosen"]]},
        GROUP | {"rejected": {"a": WORSE[0], "b": WORSE[1]}},
        GROUP | {"rejected": [f"{number} stones." for number in range(31)]},
        GROUP | {"chosen": ""},
        GROUP | {"prompt": ""},
    ],
}


@pytest.fixture(scope="module", params=["own", "real"])
def folder(request, tmp_path_factory):
    """The folder of the odd files: rows of this test, or real rows."""
    if request.param == "real":
        return request.getfixturevalue("shared") / "data/odd/derived"
    made = tmp_path_factory.mktemp("odd")
    for name, rows in OWN.items():
        (made / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return made


@pytest.fixture
def record(folder):
    """``record(name, line)``: a line of an odd file."""
    return lambda name, line: list(read(folder / f"{name}.jsonl"))[line - 1]


def source(folder, name, bad_rows):
    path = str(folder / f"{name}.jsonl")
    return Files(path=path, format="auto", columns={}, bad_rows=bad_rows, validation_path=None)


def texts(completions):
    """The contents of completions of one message each."""
    return [completion[0]["content"] for completion in completions if len(completion) == 1]


@pytest.mark.parametrize(("name", "line"), LINES)
def test_each_line_is_refused_with_its_field_or_becomes_a_preference(record, name, line):
    expected, found = FILES[name][line], record(name, line)
    if isinstance(expected, str):
        with pytest.raises(InputError) as refused:
            to_row(found, "auto", {})
        assert (refused.value.asked, refused.value.why) == (f"{name}.jsonl:{line}", expected)
        return
    row, sound = to_row(found, "auto", {}), record(name, 1).value
    assert isinstance(row, Preference) and row.origin == f"{name}.jsonl:{line}"
    assert texts([row.prompt, row.chosen]) == [sound["prompt"], sound["chosen"]]
    assert row.scores is None and row.columns == {}


@pytest.mark.parametrize("line", [line for line, expected in PAIRS.items() if isinstance(expected, list)])
def test_accepted_pairs_keep_their_rejected_completion(record, line):
    sound = record("pairs_bad", 1).value
    half = sound["chosen"][: len(sound["chosen"]) // 2]
    kept = {"rejected": sound["rejected"], "chosen and a blank": sound["chosen"] + " ", "half of chosen": half}
    assert texts(to_row(record("pairs_bad", line), "auto", {}).rejected) == [kept[what] for what in PAIRS[line]]


@pytest.mark.parametrize("line", [line for line, expected in GROUPS.items() if isinstance(expected, int)])
def test_accepted_groups_keep_every_rejected_completion_in_order(record, line):
    found = record("groups_bad", line)
    given = found.value["rejected"]
    kept = texts(to_row(found, "auto", {}).rejected)
    assert kept == ([given] if isinstance(given, str) else given) and len(kept) == GROUPS[line]


def test_the_same_completion_three_times_stays_three_times(record):
    assert len(set(texts(to_row(record("groups_bad", 7), "auto", {}).rejected))) == 1


@pytest.mark.parametrize("name", FILES)
def test_bad_rows_error_names_the_first_lines_and_counts_all(folder, name):
    refused = {line: why for line, why in FILES[name].items() if isinstance(why, str)}
    with pytest.raises(InputError) as error:
        list(source(folder, name, "error").rows("train"))
    message = str(error.value)
    assert f"{len(refused)} of {len(FILES[name])} rows cannot be used" in message
    shown = [f"{name}.jsonl:{line}: {why}" for line, why in refused.items()]
    assert all(each in message for each in shown[:5]) and shown[5] not in message
    assert f"and {len(refused) - 5} more" in message


@pytest.mark.parametrize("name", FILES)
def test_bad_rows_drop_keeps_the_other_lines_and_counts_by_reason(folder, name):
    files = source(folder, name, "drop")
    kept = [row.origin for row in files.rows("train")]
    assert kept == [f"{name}.jsonl:{line}" for line, expected in FILES[name].items() if not isinstance(expected, str)]
    assert files.dropped == Counter(why for why in FILES[name].values() if isinstance(why, str))


# --- what only the tokens show ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [line for line, expected in PAIRS.items() if isinstance(expected, list)])
def test_accepted_pairs_differ_in_tokens(record, line):
    tokens = tokenize(to_row(record("pairs_bad", line), "auto", {}), byte_tokenizer(template=CHATML), token_settings())
    prompt, chosen, _ = tokens.groups[0]
    assert tokens.tokens[prompt : prompt + chosen] != tokens.tokens[prompt + chosen :]


def test_a_pair_that_a_template_makes_equal_is_refused_by_line(record):
    """Line 15 differs by a blank at the end, which this template strips."""
    row, tokenizer = to_row(record("pairs_bad", 15), "auto", {}), byte_tokenizer(template=TRIMMING)
    with pytest.raises(InputError) as refused:
        tokenize(row, tokenizer, token_settings())
    assert str(refused.value).startswith("pairs_bad.jsonl:15 ")
    assert "the chosen completion and rejected[0] become the same tokens" in str(refused.value)
    dropped, counts = tokenize_counted(row, tokenizer, token_settings(bad_rows="drop"))
    assert dropped.reason == "cannot be tokenised" and counts.dropped_rows == 1


def test_equal_rejected_completions_are_no_fault_of_the_tokens():
    row = Preference(prompt=(user("q"),), chosen=(assistant("a"),), rejected=((assistant("b"),),) * 2, origin="f:1")
    assert len(tokenize(row, byte_tokenizer(template=CHATML), token_settings()).groups[0]) == 4


# --- scores -----------------------------------------------------------------------------------------------------------

RANKING = {"prompt": "q", "completions": ["a", "b"]}


@pytest.mark.parametrize(
    ("value", "scores", "expected"),
    [
        (PAIR, [2, 1], (2.0, 1.0)),
        (PAIR, [2, 2], (2.0, 2.0)),
        (PAIR, [1, 2], "field 'scores' gives a rejected completion more than the chosen one, which comes first"),
        (RANKING, [2, 1], (2.0, 1.0)),
        (RANKING, [2, 2], "field 'scores' has a tie for the best completion"),
        (PAIR, [float("nan"), 1], "field 'scores' holds a number that is not finite"),
        (RANKING, [1, float("inf")], "field 'scores' holds a number that is not finite"),
        (PAIR, ["2", "1"], "field 'scores[0]' is a text where a number is needed"),
        (PAIR, 2, "field 'scores' is a number where a list of numbers is needed"),
        (PAIR, [2], "field 'scores' has 1 numbers for 2 completions"),
    ],
)
def test_scores_of_the_chosen_first_or_of_a_ranking(value, scores, expected):
    record = Record("f.jsonl:7", {**value, "scores": scores})
    if isinstance(expected, tuple):
        assert to_row(record, "auto", {}).scores == expected
        return
    with pytest.raises(InputError) as refused:
        to_row(record, "auto", {})
    assert refused.value.why == expected
