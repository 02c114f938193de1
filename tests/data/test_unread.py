"""Columns that nothing reads are named, and what to type for those that look meant."""

import json

import pytest

from alignlab.data.formats import to_row
from alignlab.data.formats.conversions import convert
from alignlab.data.sources.files.record import Record
from alignlab.data.unread import MAX_NAMED, describe_unread
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Prompt, Text
from tests.commands import alignlab


def read(record, format="auto", **columns):
    return to_row(Record("f.jsonl:1", record), format, columns)


@pytest.mark.parametrize(
    ("record", "unread"),
    [
        ({"question": "q", "answer": "a", "context": "c", "id": 0}, ("context", "id")),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "system": "s"}, ()),
        ({"instruction": "q", "input": "i", "output": "a", "text": "all"}, ("text",)),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "scores": [1, 0], "tools": None, "tags": []}, ()),
        ({"prompt": "q", "responses": ["a"], "level": False}, ("responses", "level")),
    ],
)
def test_what_a_format_does_not_read_and_what_is_filled(record, unread):
    row = read(record)
    assert row.unread == unread
    assert convert(row, Prompt).unread == unread


def test_ids_are_only_listed_and_a_context_has_a_hint():
    counts = {"id": 3, "context": 3, "margin": 3}
    names, hint = describe_unread(counts, Demonstration, ["margin"])
    assert names == "columns not read: context, id"
    typed = "data.format=alpaca 'data.columns={instruction: QUESTION, input: context, output: ANSWER}'"
    assert hint == f"context: to put it after the question, type {typed}"
    assert describe_unread(counts, Text, []) == ["columns not read: context, id, margin"]
    assert describe_unread({"rewards": 1}, Prompt, []) == ["columns that only rewards are given: rewards"]
    assert describe_unread({"margin": 3}, Preference, ["margin"]) == []
    assert describe_unread(dict.fromkeys(map(str, range(20)), 1), Demonstration, [])[0].endswith("and 8 more")
    assert MAX_NAMED == 12


def test_what_the_hints_type_is_read():
    record = {"question": "q", "answer": "a", "context": "c", "system_prompt": "s"}
    row = read(record, "alpaca", instruction="question", input="context", output="answer", system="system_prompt")
    assert [message["content"] for message in row.messages] == ["s", "q\nc", "a"] and row.unread == ()
    row = read(record, "prompt", instruction="question", input="context")
    assert row.prompt[0]["content"] == "q\nc" and row.unread == ("answer", "system_prompt")


def test_a_row_without_the_columns_of_its_method_names_those_that_look_alike():
    row = read({"prompt": "q", "responses": ["a", "b"], "rewards": [1, 0]})
    with pytest.raises(InputError) as refused:
        convert(row, Preference)
    assert "data.columns={completions: responses}" in refused.value.instead
    assert "data.columns={scores: rewards}" in refused.value.instead
    compared = read(
        {"prompt": "q", "responses": ["a", "b"], "rewards": [0, 1]}, completions="responses", scores="rewards"
    )
    assert compared.chosen[0]["content"] == "b"


def test_preview_names_them(tmp_path, capsys):
    rows = [{"question": f"q{n}", "answer": "a", "context": "c", "source": "web"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data=jsonl", f"data.path={tmp_path}/rows.jsonl", f"data.cache_dir={tmp_path}", "preview.num_rows=0"]
    for _ in range(2):  # the second time from the cache
        assert alignlab("preview", *words, "data.max_tokens_per_sequence=512", "data.validation_size=null") == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "columns not read: context, source" in printed and "input: context" in printed
