"""Values that JSON has no type for, numbers and nesting beyond bounds, and files that cannot be read as files."""

import copy
import datetime
import json
import os
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignlab.data.formats import FORMATS, to_row
from alignlab.data.formats.registry import read_entry
from alignlab.data.sources import hub
from alignlab.data.sources.files import Record, read
from alignlab.data.sources.files.strict_json import MAX_DEPTH
from alignlab.data.sources.files.values import table_record
from alignlab.data.sources.fingerprint import file_hashes
from alignlab.data.sources.local import Files
from alignlab.errors import InputError

UTC = datetime.UTC
DAY = datetime.date(2024, 5, 1)
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def row(value, format="auto"):
    return to_row(Record("f.jsonl:7", value), format, {})


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


# --- tables -----------------------------------------------------------------------------------------------------------

CELLS = [
    (datetime.datetime(2024, 5, 1, 12, tzinfo=UTC), pa.timestamp("us", "UTC"), "2024-05-01T12:00:00+00:00"),
    (datetime.datetime(2024, 5, 1, 12), pa.timestamp("ns"), "2024-05-01T12:00:00"),
    (DAY, pa.date32(), "2024-05-01"),
    (datetime.time(1, 2, 3), pa.time64("us"), "01:02:03"),
    (datetime.timedelta(seconds=90), pa.duration("s"), "0:01:30"),
    (Decimal("1.50"), pa.decimal128(10, 2), 1.5),
    (Decimal("7.00"), pa.decimal128(10, 2), 7),
    (Decimal("0.12345678901234567890123"), pa.decimal128(38, 23), "0.12345678901234567890123"),
    (b"bytes", pa.binary(), "bytes"),
    ("large", pa.large_string(), "large"),
    ({"a": [DAY, None]}, pa.struct({"a": pa.list_(pa.date32())}), {"a": ["2024-05-01", None]}),
    ([("k", DAY)], pa.map_(pa.string(), pa.date32()), [["k", "2024-05-01"]]),
    (np.float16(0.5), pa.float16(), 0.5),
    (None, pa.null(), None),
]


def parquet(path, **columns):
    pa.parquet.write_table(pa.table({"prompt": ["q"], "completion": ["a"], **columns}), path)
    return path


@pytest.mark.parametrize(("value", "kind", "expected"), CELLS, ids=lambda value: str(value)[:24])
def test_a_table_holds_what_json_holds(tmp_path, value, kind, expected):
    path = parquet(tmp_path / "t.parquet", extra=pa.array([value], kind))
    (record,) = read(path)
    columns = to_row(record, "auto", {}).columns
    assert columns == {"extra": expected} and type(columns["extra"]) is type(expected)
    assert json.loads(json.dumps(columns)) == columns


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"\xff\xfe"]),
        pa.array([400_000_000_000], pa.timestamp("s")),  # the year 14645
        pa.array([1], pa.timestamp("s", "Nowhere/Land")),
        pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]),
    ],
    ids=["bytes", "year", "zone", "text"],
)
def test_a_cell_that_no_row_can_hold_is_refused_by_its_row_and_field(tmp_path, values):
    path = parquet(tmp_path / "t.parquet", extra=values)
    (record,) = read(path)
    said = refusal(to_row, record, "auto", {})
    assert said.startswith("t.parquet[0]: field 'extra'") and "data.bad_rows=drop" in said


def test_a_bad_cell_spoils_only_its_row(tmp_path):
    table = {"prompt": ["q", "q"], "completion": ["a", "b"], "extra": pa.array([400_000_000_000, 5], pa.timestamp("s"))}
    pa.parquet.write_table(pa.table(table), tmp_path / "t.parquet")
    source = Files(path=str(tmp_path / "t.parquet"), format="auto", columns={}, bad_rows="drop", validation_path=None)
    assert [made.origin for made in source.rows("train")] == ["t.parquet[1]"]


def test_nulls_that_a_table_fills_into_tools_and_calls_are_not_in_the_row(tmp_path):
    """One column has one type: each call gets the arguments of all calls, and each schema the keys of all schemas."""

    def record(name, argument, value, **schema):
        properties = {argument: {"type": "string", **schema}}
        call = {
            "type": "function",
            "function": {"name": name, "arguments": {argument: value, "nested": [{argument: 1}]}},
        }
        tool = {"name": name, "parameters": {"type": "object", "properties": properties}}
        return {
            "tools": [{"type": "function", "function": tool}],
            "messages": [
                TALK[0],
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "content": "r"},
                TALK[1],
            ],
            "info": {argument: None},
        }

    records = [record("clock", "zone", "Oslo"), record("weather", "city", "Rome", enum=["Rome", None])]
    pa.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    made = [to_row(one, "auto", {}) for one in read(tmp_path / "t.parquet")]
    wanted = [row(copy.deepcopy(one)) for one in records]
    assert [(one.tools, one.messages) for one in made] == [(one.tools, one.messages) for one in wanted]
    assert [one.columns["info"] for one in made] == [{"zone": None, "city": None}] * 2  # other columns stay as they are


def test_nulls_that_somebody_wrote_stay(tmp_path):
    call = {"name": "clock", "arguments": {"zone": None}}
    messages = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert row({"messages": messages}).messages[1]["tool_calls"][0]["function"] == call
    written = {"messages": json.dumps(messages), "tools": json.dumps([{"name": "clock", "strict": None}])}
    pa.parquet.write_table(pa.Table.from_pylist([written]), tmp_path / "t.parquet")
    made = to_row(next(read(tmp_path / "t.parquet")), "auto", {})
    assert made.messages[1]["tool_calls"][0]["function"] == call
    assert made.tools[0]["function"] == {"name": "clock", "strict": None}


@pytest.mark.parametrize("cut", [0, 3, 10, 0.3, 0.9, -1])
def test_a_cut_parquet_file_is_refused(tmp_path, cut):
    whole = parquet(tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: int(len(whole) * cut) if 0 < cut < 1 else cut])
    assert "t.parquet" in refusal(lambda: list(read(tmp_path / "t.parquet")))


def test_parquet_data_that_are_damaged_under_a_whole_footer_are_refused(tmp_path):
    content = bytearray(parquet(tmp_path / "t.parquet", extra=["x" * 500]).read_bytes())
    content[4:60] = b"\xff" * 56
    (tmp_path / "t.parquet").write_bytes(content)
    assert "t.parquet" in refusal(lambda: list(read(tmp_path / "t.parquet")))


def test_hub_rows_hold_json_values_or_say_why_not():
    good, bad = hub.hub_records("set", "train", [{"prompt": "q", "at": DAY}, {"image": object()}])
    assert good.value["at"] == "2024-05-01"
    assert "set/train[1]: field 'image' holds a object" in str(bad.fault)


@pytest.mark.parametrize("error", [RuntimeError("scripts"), pa.ArrowInvalid("cut"), ImportError("no Pillow")])
def test_hub_rows_that_break_off_are_refused(error):
    def rows():
        yield {"prompt": "q"}
        raise error

    assert str(error) in refusal(lambda: list(hub.hub_records("set", "train", rows())))


def test_a_table_nested_beyond_bounds_is_refused():
    value = "x"
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    assert "nested too deeply" in str(table_record("t[0]", {"a": value}).fault)


# --- numbers and nesting ----------------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000
MODERATE = "[" * 200 + "]" * 200
HUGE = "1" + "0" * 400


@pytest.mark.parametrize("text", [DEEP, MODERATE, HUGE, "1e999", f"[{HUGE}]", "-Infinity"])
def test_a_file_refuses_by_row_what_nothing_later_could_handle(tmp_path, text):
    (tmp_path / "f.jsonl").write_text(f'{{"prompt": "q", "completion": "a", "extra": {text}}}\n')
    (record,) = read(tmp_path / "f.jsonl")
    assert str(record.fault).startswith("f.jsonl:1: ")


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b", "scores": [int(HUGE), 1]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "scores": f"[{HUGE}, 1]"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "scores": "[1e999, 1]"},
        {"instruction": "i", "output": "o", "history": DEEP},
        {"instruction": "i", "output": "o", "history": MODERATE},
        {"messages": TALK, "tools": DEEP},
        {"messages": DEEP},
        {"messages": [*TALK[:1], {"role": "assistant", "tool_calls": DEEP}]},
        {"messages": [TALK[0], {"role": "assistant", "content": [{"type": ["text"], "text": "a"}]}]},
        {"messages": [TALK[0], {"role": "assistant", "content": [{"type": {}, "text": "a"}]}]},
        {"messages": [TALK[0], {"role": ["assistant"], "content": "a"}]},
        {"messages": [TALK[0], {"role": {}, "content": "a"}]},
        {"messages": [TALK[0], {"role": "assistant", "content": "a", "loss": [1]}]},
    ],
)
def test_a_row_with_odd_values_is_refused_by_field(value):
    assert refusal(row, value).startswith("f.jsonl:7: field ")


GOOD = {
    "preference": {"prompt": "q", "chosen": "a", "rejected": ["b", "c"], "scores": [3, 2, 1], "system": "s"},
    "scored": {"prompt": "q", "completions": [[5, 6], [7]], "rewards": [1, None], "logps": [[-1.5, 0], [-0.5]]},
    "ranked": {"prompt": "q", "completions": ["a", "b"], "scores": [2, 1], "tools": [{"name": "f"}]},
    "unpaired": {"messages": TALK, "label": True},
    "messages": {"messages": [*TALK, {"role": "user", "content": [{"type": "text", "text": "x"}]}, TALK[1]]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 1}]},
    "alpaca": {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]], "system": "s"},
    "alpaca_prompt": {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"]]},
    "prompt_completion": {"prompt": TALK[:1], "completion": TALK[1:]},
    "prompt_response": {"prompt": "q", "response": "a"},
    "question_answer": {"question": "q", "answer": "a"},
    "query_response": {"query": "q", "response": "a"},
    "input_output": {"input": "q", "output": "a"},
    "tokens": {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]},
    "token_pairs": {"prompt_input_ids": [5], "chosen_input_ids": [6], "rejected_input_ids": [[7], [8, 9]]},
    "text": {"text": "t"},
    "prompt": {"prompt": "q", "answer": 3},
    "calls": {
        "messages": [
            TALK[0],
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "3"},
            TALK[1],
        ],
        "tools": '[{"name": "f"}]',
    },
}
ODD = [
    *(None, True, 0, -1, 1.5, float("nan"), float("inf"), int(HUGE), "", " ", "[", "{}", "[[", "null", DEEP, HUGE),
    *(
        [],
        {},
        [[]],
        [{}],
        [None],
        ["a"],
        [1],
        {"role": []},
        {"type": []},
        {"": None},
        "\ud83d",
        [[["x"]]],
        TALK,
        "a\0b",
    ),
]


def places(value, path=()):
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def put(value, path, odd):
    if not path:
        return odd
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return value


def test_every_format_has_a_good_row_here():
    assert FORMATS.keys() <= GOOD.keys()
    assert all(row(copy.deepcopy(value)) for value in GOOD.values())


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_a_row_with_anything_anywhere_is_a_row_or_a_refusal(data):
    name = data.draw(st.sampled_from(sorted(GOOD)))
    value = copy.deepcopy(GOOD[name])
    for _ in range(data.draw(st.integers(1, 2))):
        value = put(
            value, data.draw(st.sampled_from(list(places(value)))), copy.deepcopy(data.draw(st.sampled_from(ODD)))
        )
        if not isinstance(value, dict):
            break
    format = data.draw(st.sampled_from(["auto", name if name in FORMATS else "auto"]))
    try:
        json.dumps(row(value, format).columns)
    except InputError as error:
        assert str(error).startswith("f.jsonl:7: ")


# --- registries -------------------------------------------------------------------------------------------------------

ENTRY = {
    "file_name": "x.json",
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "m", "chosen": "c"},
    "tags": {"role_tag": "r"},
    "subset": "s",
    "split": "train",
    "folder": "f",
    "num_samples": 3,
}
JUNK = [None, 5, 1.5, True, "text", [], ["a"], {}, {"a": []}, "x" * 300, "\0"]


@pytest.mark.parametrize("path", list(places(ENTRY)), ids=str)
def test_a_registry_entry_of_any_type_is_an_entry_or_a_refusal(tmp_path, path):
    for junk in JUNK:
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": put(copy.deepcopy(ENTRY), path, junk)}))
        try:
            entry = read_entry(str(tmp_path), "mine")
        except InputError as error:
            assert str(error).startswith(("dataset_info.json: mine", "- dataset_info.json: mine"))
        else:
            assert entry.num_samples is None or type(entry.num_samples) is int


def test_a_wrong_type_in_a_registry_names_the_key_and_the_type(tmp_path):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": ENTRY | {"num_samples": "3", "columns": []}}))
    said = refusal(read_entry, str(tmp_path), "mine")
    assert "mine.num_samples: it is a text. Write a number." in said and "mine.columns: it is a list" in said


@pytest.mark.parametrize("text", ["", "[]", "5", "{", "\x00", DEEP, '{"mine": 5}', '{"mine": []}'])
def test_a_registry_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text)
    refusal(read_entry, str(tmp_path), "mine")


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "a\0b", "~nobody-of-that-name/x.jsonl", "no/such.jsonl"])
def test_a_path_that_cannot_be_is_refused(path):
    settings = {"format": "auto", "columns": {}, "bad_rows": "error", "validation_path": None}
    assert refusal(lambda: Files(path=path, **settings)).startswith("data.path=")
    refusal(read_entry, path, "mine")


@pytest.mark.parametrize("name", ["pipe.jsonl", "device.jsonl", "loop.jsonl"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    if name.startswith("pipe"):
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero" if name.startswith("device") else name)
    refusal(lambda: list(read(tmp_path / name)))


def test_a_folder_in_a_loop_is_read_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "q"}\n')
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(list(read(tmp_path))) == 1


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), PermissionError(13, "closed"), OSError(5, "failing")])
def test_a_file_that_goes_after_it_was_listed_is_refused(tmp_path, monkeypatch, error):
    (tmp_path / "a.jsonl").write_text('{"prompt": "q"}\n')

    def fails(*_, **__):
        raise error

    monkeypatch.setattr("builtins.open", fails)
    for use in (lambda: list(read(tmp_path)), lambda: file_hashes(tmp_path)):
        said = refusal(use)
        assert str(tmp_path / "a.jsonl") in said and error.strerror in said
