"""Formats: what each makes of a record, and what it refuses."""

import math
from collections import Counter

import pytest

from alignlab.data.formats import FORMATS, to_row
from alignlab.data.formats.conversions import convert
from alignlab.data.formats.reading import to_rows
from alignlab.data.sources.files import Record
from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Prompt, Text, Unpaired
from tests.data.tokenise.tiny_tokenizers import byte_tokenizer, token_settings


def row(value, format="auto", columns=None, **record):
    return to_row(Record("f.jsonl:7", value, **record), format, columns or {})


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


TALK = [user("q"), assistant("a")]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
RESULT = {"role": "tool", "content": "3"}

DEMONSTRATIONS = [
    ({"instruction": "i", "input": "", "output": "o"}, [user("i"), assistant("o")]),
    ({"instruction": "i", "output": "o"}, [user("i"), assistant("o")]),
    ({"instruction": "i", "input": "x", "output": "o"}, [user("i\nx"), assistant("o")]),
    ({"instruction": "", "input": "x", "output": "o"}, [user("x"), assistant("o")]),
    (
        {"instruction": "i", "output": "o", "system": "s", "history": [["q", "a"]]},
        [system("s"), user("q"), assistant("a"), user("i"), assistant("o")],
    ),
    ({"instruction": "i", "output": "o", "system": "", "history": None, "input": None}, [user("i"), assistant("o")]),
    ({"prompt": "q", "completion": "a"}, TALK),
    ({"prompt": [user("q")], "completion": [assistant("a")]}, TALK),
    ({"prompt": "q", "response": "a"}, TALK),
    ({"question": "q", "answer": "a"}, TALK),
    ({"query": "q", "response": "a", "history": []}, TALK),
    ({"input": "q", "output": "a"}, TALK),
    (TALK, TALK),
    ({"messages": TALK}, TALK),
    ({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, TALK),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, TALK),
    ({"messages": [{"from": "Human", "value": "q"}, {"role": "Assistant", "content": "a", "name": None}]}, TALK),
    ({"conversation": [{"human": "q", "assistant": "a"}], "system": "s"}, [system("s"), *TALK]),
    ({"messages": [{"role": "developer", "content": "s"}, *TALK]}, [system("s"), *TALK]),
    ({"messages": [user([{"type": "text", "text": "q"}]), assistant([{"type": "text", "value": "a"}])]}, TALK),
    (
        {"messages": [user("q"), assistant([{"type": "reasoning", "value": "r"}, {"type": "text", "value": "a"}])]},
        [user("q"), assistant("a", reasoning_content="r")],
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "3"},
                {"from": "gpt", "value": "a"},
            ]
        },
        [user("q"), assistant("", tool_calls=[CALL]), RESULT, assistant("a")],
    ),
    (
        {
            "messages": [
                user("q"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                RESULT,
                assistant("a"),
            ]
        },
        [user("q"), assistant("", tool_calls=[{"id": "1"} | CALL]), RESULT, assistant("a")],
    ),
    (
        {"messages": [user("q"), assistant([{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}])]},
        [user("q"), assistant("", tool_calls=[CALL])],
    ),
    (
        {
            "messages": [
                user("q") | {"loss_weight": 0.0},
                assistant("a", loss_weight=0.0),
                user("r"),
                assistant("b", loss=True),
            ]
        },
        [user("q"), assistant("a", supervised=False), user("r"), assistant("b")],
    ),
    (
        {"messages": [user("q") | {"weight": 0}, assistant("a", weight=0.5), user("r"), assistant("b", weight=1.0)]},
        [user("q"), assistant("a", weight=0.5), user("r"), assistant("b")],
    ),
]


@pytest.mark.parametrize(("value", "messages"), DEMONSTRATIONS)
def test_dialogues_in_every_dialect(value, messages):
    made = row(value)
    assert isinstance(made, Demonstration) and list(made.messages) == messages and made.origin == "f.jsonl:7"


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "q", "completion": "a", "chosen": None, "messages": None},
        {"messages": TALK, "conversations": None, "prompt": None},
    ],
)
def test_null_columns_as_tables_give_them_are_absent(value):
    assert list(row(value).messages) == TALK


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_under_every_name(name):
    answer = {"role": "assistant", "content": "a"}
    assert row({"messages": [TALK[0], {**answer, name: "r"}]}).messages[1] == {**answer, "reasoning_content": "r"}
    for value, why in ((["r"], f"'messages\\[1\\].{name}' is a list"), ("other", "two different texts of reasoning")):
        content = [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "r"}]
        with pytest.raises(InputError, match=why):
            row({"messages": [TALK[0], {"role": "assistant", "content": content, name: value}]})


def test_completions_that_look_like_json_stay_text():
    made = row({"prompt": "q", "chosen": '{"a": 1}', "rejected": '["b"]'})
    assert made.chosen[0]["content"] == '{"a": 1}' and made.rejected[0][0]["content"] == '["b"]'


def test_further_columns_are_kept_and_consumed_ones_are_not():
    made = row({"question": "q", "answer": "a", "level": 3, "tags": ["x"], "note": None})
    assert made.columns == {"level": 3, "tags": ["x"], "note": None, "answer": "a"}
    assert row({"instruction": "i", "output": "o", "system": "s", "id": 1}).columns == {"id": 1}


def test_text_and_prompt():
    assert row({"text": "t"}) == Text(text="t", origin="f.jsonl:7")
    assert row("t", "text") == Text(text="t", origin="f.jsonl:7")
    made = row({"prompt": "q", "answer": "4", "system": "s"})
    assert made == Prompt(prompt=(system("s"), user("q")), origin="f.jsonl:7", columns={"answer": "4"})
    assert row({"problem": [user("q")]}, columns={"prompt": "problem"}).prompt == (user("q"),)


@pytest.mark.parametrize(
    "tools", [[{"name": "f"}], '[{"name": "f"}]', [{"type": "function", "function": {"name": "f"}}]]
)
def test_tools_take_the_form_that_templates_expect(tools):
    assert row({"messages": TALK, "tools": tools}).tools == ({"type": "function", "function": {"name": "f"}},)
    assert row({"messages": TALK, "tools": ""}).tools is None


A, B, C = [assistant("a")], [assistant("b")], [assistant("c")]
PAIRS = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"question": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [user("q")], "chosen": A, "rejected": B},
    {"prompt": "q", "chosen": [user("q"), *A], "rejected": [user("q"), *B]},
    {"chosen": [user("q"), *A], "rejected": [user("q"), *B]},
    {"chosen_messages": [user("q"), assistant("a", loss_weight=1.0)], "rejected_messages": [user("q"), *B]},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": B[0]},
    {"prompt": "q", "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
    {"prompt": "q", "chosen": "a", "rejected": ["b"]},
    {"instruction": "q", "input": "", "output": ["a", "b"]},
    {"prompt": "q", "completions": ["a", "b"]},
    {"prompt": "q", "completions": ["b", "a"], "scores": [0.1, 0.9]},
]


@pytest.mark.parametrize("value", PAIRS)
def test_pairs_in_every_dialect(value):
    made = row(value)
    assert isinstance(made, Preference)
    assert (made.prompt, made.chosen, made.rejected) == ((user("q"),), tuple(A), (tuple(B),))
    assert made.columns == {}


@pytest.mark.parametrize("rejected", [["b", "c"], [B, C], [*B, *C], [[user("q"), *B], [user("q"), *C]]])
def test_groups_keep_every_rejected_completion(rejected):
    inside = isinstance(rejected[0], list) and len(rejected[0]) == 2
    made = row({"prompt": "q", "chosen": [user("q"), *A] if inside else "a", "rejected": rejected, "scores": [3, 2, 1]})
    assert made.rejected == (tuple(B), tuple(C)) and made.scores == (3.0, 2.0, 1.0) and made.chosen == tuple(A)


def test_the_common_beginning_is_the_prompt_and_system_texts_go_before_it():
    long = [user("q"), assistant("x"), user("r")]
    made = row({"chosen": [*long, *A], "rejected": [*long, *B], "system": "s"})
    assert made.prompt == (system("s"), *long) and made.chosen == tuple(A)


def test_ranked_lists_are_sorted_by_score():
    made = row({"prompt": "q", "completions": ["c", "a", "b"], "scores": [1, 3, 2]})
    assert (made.chosen, made.rejected, made.scores) == (tuple(A), (tuple(B), tuple(C)), (3.0, 2.0, 1.0))


@pytest.mark.parametrize(
    ("value", "desirable"),
    [
        ({"messages": TALK, "label": True}, True),
        ({"messages": TALK, "label": "False"}, False),
        ({"prompt": "q", "completion": "a", "label": False}, False),
        ({"instruction": "q", "output": "a", "label": True}, True),
    ],
)
def test_unpaired(value, desirable):
    made = row(value)
    assert made == Unpaired(prompt=(user("q"),), completion=tuple(A), desirable=desirable, origin="f.jsonl:7")


def test_a_label_that_is_no_verdict_is_a_column():
    assert row({"messages": TALK, "label": "sports"}).columns == {"label": "sports"}
    assert row({"messages": TALK, "label": 1}, "unpaired").desirable is True


@pytest.mark.parametrize("label", [math.nan, None, 2, "sports", [True]])
def test_a_label_that_is_no_verdict_is_refused_where_one_is_needed(label):
    with pytest.raises(InputError, match=r"f\.jsonl:7: field 'label' is .* where true or false is needed"):
        row({"messages": TALK, "label": label}, "unpaired")


@pytest.mark.parametrize("value", ["NaN", "1e400", '"\\ud83d"', "[" * 70 + "]" * 70], ids=lambda value: value[:9])
def test_json_in_a_text_is_read_as_strictly_as_a_file(value):
    with pytest.raises(InputError, match="field 'tools' is not valid JSON"):
        row({"messages": TALK, "tools": f'[{{"name": {value}}}]'})


REFUSED = [
    ({}, "no format fits its columns (none at all)"),
    (None, "the row is null"),
    (3, "the row is a number"),
    ("t", "the row is a text"),
    ([], "the row is a list"),
    ({"Instruction": "i", " output": "o"}, "data.columns={instruction: 'Instruction', output: ' output'}"),
    ({"instruction": "i"}, "field 'output' is missing"),
    ({"instruction": "i", "output": " \n"}, "field 'output' is empty"),
    ({"instruction": "i", "output": 4}, "field 'output' is a number"),
    ({"instruction": "i", "output": True}, "field 'output' is a boolean"),
    ({"instruction": "i", "output": ["a"]}, "field 'output[0]' is a text where a message"),
    ({"instruction": {}, "output": "o"}, "field 'instruction' is an object"),
    ({"instruction": " ", "input": "", "output": "o"}, "field 'instruction' is empty"),
    ({"instruction": "i", "output": "o", "history": [["q"]]}, "field 'history[0]' is not a pair"),
    ({"text": " "}, "field 'text' is empty"),
    ({"prompt": ""}, "field 'prompt' is empty"),
    ({"prompt": TALK}, "field 'prompt' ends with role 'assistant'"),
    ({"messages": []}, "field 'messages' is an empty list"),
    ({"messages": "x"}, "field 'messages' is a text"),
    ({"messages": "[x"}, "field 'messages' is not valid JSON"),
    ({"messages": [None]}, "field 'messages[0]' is null"),
    ({"messages": [{"content": "q"}]}, "field 'messages[0].role' is missing"),
    ({"messages": [{"role": "user"}]}, "field 'messages[0].content' is missing"),
    ({"messages": [{"role": "user", "content": None}]}, "field 'messages[0].content' is null"),
    ({"messages": [{"role": "alien", "content": "q"}]}, "field 'messages[0].role' is 'alien'"),
    ({"messages": [user(" ")]}, "field 'messages[0].content' is empty"),
    ({"messages": [user("q"), assistant("")]}, "field 'messages[1].content' is empty"),
    ({"messages": [user("q"), *TALK]}, "field 'messages[1].role': 'user' cannot follow 'user'"),
    ({"messages": [*TALK, *A]}, "field 'messages[2].role': 'assistant' cannot follow 'assistant'"),
    ({"messages": A}, "field 'messages[0].role': 'assistant' cannot come first"),
    ({"messages": [user("q"), system("s"), *A]}, "'system' cannot follow 'user'"),
    ({"messages": [system("s"), system("s"), *TALK]}, "'system' cannot follow 'system'"),
    ({"messages": [*TALK, RESULT]}, "'tool' follows an assistant message without tool calls"),
    ({"messages": [*TALK, user("r")]}, "ends with role 'user'"),
    ({"messages": [user("q"), assistant("a", loss_weight=0)]}, "no assistant message in the loss"),
    ({"messages": [user("q"), assistant("a", loss_weight=-0.5)]}, "field 'messages[1].loss_weight' is -0.5"),
    ({"messages": [user("q"), assistant("a", weight="x")]}, "field 'messages[1].weight' is 'x'"),
    ({"messages": [user("q"), assistant("a", weight=10**400)]}, "field 'messages[1].weight' is 1"),
    ({"chosen": [user("q"), assistant("a", weight=0.5)], "rejected": "b"}, "a message has a weight of its own"),
    ({"messages": [user("q") | {"weight": 1}, *A]}, "puts a message of role 'user' into the loss"),
    ({"messages": [user([{"type": "image_url"}]), *A]}, "field 'messages[0].content[0]' is of type 'image_url'"),
    ({"messages": [user("q"), {"from": "function_call", "value": "f(x)"}]}, "is a tool call that is not a JSON object"),
    (
        {"messages": [user("q"), assistant("", tool_calls=[{"name": "f", "arguments": "x"}])]},
        "tool_calls.arguments' is a",
    ),
    ({"messages": TALK, "conversations": TALK}, "both hold a dialogue"),
    ({"messages": [system("a"), *TALK], "system": "b"}, "differs from the system message"),
    ({"messages": TALK, "images": ["x.png"]}, "field 'images' is filled"),
    ({"messages": TALK, "tools": [1]}, "field 'tools' is a list where a list of objects"),
    ({"prompt": "q", "chosen": "a"}, "field 'rejected' is missing"),
    ({"chosen": "a", "rejected": "b"}, "field 'prompt' is missing"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "field 'rejected' holds the chosen completion"),
    ({"prompt": "q", "chosen": "a", "rejected": ["b", "a"]}, "field 'rejected' holds the chosen completion"),
    ({"prompt": "q", "chosen": "a", "rejected": []}, "field 'rejected' is an empty list"),
    ({"prompt": "q", "chosen": "a", "rejected": ["b", ""]}, "field 'rejected[1]' is empty"),
    ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "field 'chosen[0]' is a text where a message"),
    ({"prompt": "q", "chosen": 7, "rejected": 8}, "field 'chosen' is a number"),
    ({"chosen": TALK, "rejected": [user("r"), *B]}, "has another prompt"),
    ({"prompt": "x", "chosen": TALK, "rejected": [user("q"), *B]}, "field 'prompt' differs"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "scores": [1]}, "field 'scores' has 1 numbers for 2"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "scores": [1, 2]}, "more than the chosen one"),
    ({"prompt": "q", "completions": ["a", "b"], "scores": [1, 1]}, "tie for the best"),
    ({"prompt": "q", "completions": ["a"]}, "one completion where a ranking needs two"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED)
def test_refusals_name_place_and_field(value, words):
    with pytest.raises(InputError) as refusal:
        row(value)
    assert words in str(refusal.value) and str(refusal.value).startswith("f.jsonl:7: ")


def test_a_repeated_key_is_refused():
    with pytest.raises(InputError, match="field 'output' appears twice"):
        row({"instruction": "i", "output": "o"}, repeated=("output",))


def test_a_named_format_does_not_look_for_another():
    with pytest.raises(InputError, match="field 'instruction' is missing"):
        row({"prompt": "q", "completion": "a"}, "alpaca")
    with pytest.raises(InputError, match="field 'output"):
        row({"instruction": "q", "output": ["a", "b"]}, "alpaca")


def test_the_prompt_of_alpaca():
    """As in its ``train.py``: another one where the input is empty, and the answer right after it."""
    instruction, answer = "Say {x}.", "y"
    asked = "Write a response that appropriately completes the request.\n\n### Instruction:\nSay {x}.\n\n"
    plain = f"Below is an instruction that describes a task. {asked}### Response:"
    further = "Below is an instruction that describes a task, paired with an input that provides further context. "
    full = f"{further}{asked}### Input:\n1 2\n\n### Response:"
    for given, prompt in {"": plain, "1 2": full}.items():
        made = row({"instruction": instruction, "input": given, "output": answer, "text": "x"}, "alpaca_prompt")
        assert list(made.messages) == [user(prompt), assistant(answer)] and made.unread == ("text",)
        tokenizer = byte_tokenizer()
        tokens = tokenize(made, tokenizer, token_settings(chat_template="none"))
        assert tokenizer.decode(tokens.tokens) == f"{prompt}{answer}</s>" and sum(tokens.supervised) == 2


def test_columns_rename():
    made = row({"Q": "q", "A": "a", "answer": "kept"}, columns={"prompt": "Q", "completion": "A"})
    assert list(made.messages) == TALK and made.columns == {"answer": "kept"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_refuses_an_empty_object_politely(name):
    with pytest.raises(InputError, match="is missing"):
        row({}, name)


def rows(values, **settings):
    records = [Record(f"f:{line}", value) for line, value in enumerate(values, 1)]
    defaults = {"asked": "data.path=f", "format": "auto", "columns": {}, "bad_rows": "error", "dropped": Counter()}
    return list(to_rows(records, **(defaults | settings)))


def test_faults_of_a_source_are_reported_together_with_their_number():
    with pytest.raises(InputError) as refusal:
        rows([{"text": "good"}, *[{"text": ""}] * 6, {"text": "good"}])
    message = str(refusal.value)
    assert "data.path=f: 6 of 8 rows cannot be used: f:2: field 'text' is empty; f:3" in message
    assert "f:6" in message and "f:7" not in message and "and 1 more" in message


def test_dropped_rows_are_counted_by_reason():
    dropped = Counter()
    kept = rows([{"text": "good"}, {"text": ""}, {"text": ""}, 3], bad_rows="drop", dropped=dropped)
    assert len(kept) == 1
    assert dropped == {
        "field 'text' is empty": 2,
        "the row is a number where an object with named columns is needed": 1,
    }


@pytest.mark.parametrize(
    ("values", "settings", "words"),
    [
        ([], {}, "there are no rows in it"),
        ([{"text": ""}], {"bad_rows": "drop"}, "every row was dropped: 1 × field 'text' is empty"),
        ([{"text": "t"}], {"columns": {"text": "txt"}}, "no row has a column 'txt'. Did you mean 'text'"),
        ([{"name": "t"}], {"columns": {"text": "txt"}}, "there is no column 'txt' as data.columns says"),
        ([{"text": "t"}], {"format": "txt"}, "data.format=txt: there is no such format. Did you mean 'text'"),
    ],
)
def test_sources_without_use_are_refused(values, settings, words):
    with pytest.raises(InputError) as refusal:
        rows(values, **settings)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("label", "verdict"),
    [(True, True), ("FALSE", False), (1, True), (0, False), (0.0, False), ("1", True), ("Good", True), ("bad", False)],
)
@pytest.mark.parametrize("name", ["label", "kto_tag", "desirable"])
def test_labels_of_unpaired_rows(name, label, verdict):
    record = Record("f:1", {"prompt": "q", "completion": "a", name: label})
    assert to_row(record, "unpaired", {}).desirable is verdict


def test_numbers_are_labels_only_where_the_format_says_so():
    record = Record("f:1", {"prompt": "q", "completion": "a", "label": 1})
    assert isinstance(to_row(record, "auto", {}), Demonstration)
    with pytest.raises(InputError, match=r"data\.format=unpaired to read its column 'label'"):
        convert(to_row(record, "auto", {}), Unpaired)
    with pytest.raises(InputError, match="field 'label' is 'maybe'"):
        to_row(Record("f:1", {"prompt": "q", "completion": "a", "label": "maybe"}), "unpaired", {})


# --- completions with rewards -----------------------------------------------------------------------------------------


def test_completions_with_rewards_become_columns_of_a_prompt():
    made = row({"prompt": "q", "completions": ["a", [5, 6]], "rewards": "[1, null]", "answer": "a"})
    assert made.prompt == (user("q"),)
    assert made.columns == {"completions": ["a", [5, 6]], "rewards": [1, None], "answer": "a"}
    made = row({"prompt": "q", "completions": [[5, 6]], "rewards": [0.5], "logps": [[-1.0, -2]]})
    assert made.columns["logps"] == [[-1.0, -2]]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"completions": []}, "field 'completions' is an empty list"),
        ({"completions": [[], [5]]}, r"field 'completions\[0\]' is an empty list"),
        ({"completions": ["a", " "]}, r"field 'completions\[1\]' is empty"),
        ({"completions": ["a", 5]}, r"field 'completions\[1\]' is a number where a text is needed"),
        ({"completions": [[5, "x"], [5]]}, r"field 'completions\[0\]\[1\]' is a text"),
        ({"rewards": [1]}, "field 'rewards' has 1 entries for 2 completions"),
        ({"rewards": [1, float("inf")]}, r"field 'rewards\[1\]' is inf where a finite number is needed"),
        ({"rewards": 3}, "field 'rewards' is a number where a list is needed"),
        ({"rewards": [True, 0]}, r"field 'rewards\[0\]' is a boolean"),
        ({"logps": [[-1]]}, "field 'logps' has 1 entries for 2 completions"),
        ({"logps": [[-1], [-1]]}, r"field 'logps\[0\]' has 1 numbers for 2 tokens"),
        ({"logps": [[-1, None], [-1]]}, r"field 'logps\[0\]\[1\]' is null"),
        ({"completions": ["a", "b"], "logps": [[-1], [-1]]}, "'logps' stands beside completions as texts"),
    ],
)
def test_completions_that_do_not_match_their_rewards_are_refused(changes, why):
    with pytest.raises(InputError, match=why):
        row({"prompt": "q", "completions": [[5, 6], [7]], "rewards": [1, 0], **changes})
