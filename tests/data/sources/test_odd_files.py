"""Odd files: each loads with its rows, or is refused with the place named.

Small ones are written here; every real and every odd file that lies beside the repository is read as well.
In the tables below a number is the rows that load, ``(rows, words)`` the rows left by ``bad_rows=drop`` and the words
that the refusal under ``bad_rows=error`` must hold, a text the words of a refusal that holds under both.
"""

import gzip
import json
from collections import Counter

import pytest

from alignlab.data.sources.files import read
from alignlab.data.sources.local import Files
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Text, Unpaired

GOOD = {
    "sft/openai-gsm8k_first_100_lines.jsonl": (Demonstration, 100),
    "sft/alpaca_data_cleaned_first_100_lines.jsonl": (Demonstration, 100),
    "sft/gsm8k_train_1000.jsonl": (Demonstration, 1000),
    "sft/gsm8k_test_300.jsonl": (Demonstration, 300),
    "sft/alpaca_en_200.json": (Demonstration, 200),
    "sft/alpaca_zh_200.json": (Demonstration, 200),
    "sft/huanhuan_zh_100.json": (Demonstration, 100),
    "sft/multi_turn_sharegpt_200.jsonl": (Demonstration, 200),
    "sft/toolcall_sharegpt_40.json": (Demonstration, 40),
    "sft/messages_kto_50.json": (Unpaired, 50),
    "sft/messages_content_parts_60.jsonl": (Demonstration, 60),
    "sft/messages_reason_tool_10.jsonl": (Demonstration, 10),
    "sft/messages_bare_list_100.jsonl": (Demonstration, 100),
    "preference/dpo_en_sharegpt_100.json": (Preference, 100),
    "preference/dpo_zh_sharegpt_100.json": (Preference, 100),
    "preference/messages_dpo_5.jsonl": (Preference, 5),
    "groups/gsm8k_solution_groups_100.jsonl": (Preference, 100),
    "groups/alpacaeval_ranked_60.jsonl": (Preference, 60),
    "text/tinyshakespeare_first_300k.txt": (Text, 1),
    "text/c4_50.jsonl": (Text, 50),
    "text/mlx_demo_text_200.jsonl": (Text, 200),
    "text/wiki_2_long_lines.txt": (Text, 1),
}

ODD = {
    "sft/messages_reasoning_tokenize.jsonl": (12, ["jsonl:13: field 'messages[1].content[0]' is of type 'image'"]),
    "odd/derived/crlf.jsonl": 20,
    "odd/derived/cr_only.jsonl": 20,
    "odd/derived/utf8_bom.jsonl": 20,
    "odd/derived/utf16le_bom.jsonl": 20,
    "odd/derived/no_final_newline.jsonl": 20,
    "odd/derived/blank_lines.jsonl": 3,
    "odd/derived/only_newlines.jsonl": "only_newlines.jsonl: the file is empty",
    "odd/derived/zero_bytes.jsonl": "zero_bytes.jsonl: the file is empty",
    "odd/derived/truncated_last_line.jsonl": (19, ["truncated_last_line.jsonl:20: not JSON: Unterminated string"]),
    "odd/derived/null_bytes_inside.jsonl": (3, ["null_bytes_inside.jsonl:3: NUL bytes"]),
    "odd/derived/invalid_utf8_byte.jsonl": (3, ["invalid_utf8_byte.jsonl:3: byte 0xFF in column 13 is not UTF-8"]),
    "odd/derived/concatenated_objects_one_line.jsonl": 3,
    "odd/derived/pretty_printed_objects.jsonl": 3,
    "odd/derived/json_array_named_jsonl.jsonl": 5,
    "odd/derived/jsonl_named_json.json": 5,
    "odd/derived/json_object_with_data_key.json": 5,
    "odd/derived/gzip_named_jsonl.jsonl": 5,
    "odd/derived/rows.jsonl.gz": 5,
    "odd/derived/bad_line_in_the_middle.jsonl": (7, ["9 of 16 rows", "jsonl:4: not JSON", "jsonl:7: ", "jsonl:9: "]),
    "odd/derived/zh_gbk.json": "zh_gbk.json:3: byte 0xB1 in column 20 is not UTF-8. Save it as UTF-8: iconv -f GB18030",
    "odd/derived/lone_surrogates.jsonl": (1, ["jsonl:1: field 'question' holds half", "jsonl:2: field 'answer'"]),
    "odd/derived/duplicate_keys_in_row.jsonl": (1, ["duplicate_keys_in_row.jsonl:1: field 'output' appears twice"]),
    # The row whose output is a list of two is a preference, as in LLaMA-Factory's older sets.
    "odd/derived/sft_missing_and_non_string_fields.jsonl": (7, ["13 of 20 rows", "jsonl:4: field 'output' is missing"]),
    "odd/derived/sft_missing_and_non_string_fields.json": (
        7,
        ["13 of 20 rows", "json:16[3]: field 'output' is missing"],
    ),
    "odd/derived/messages_bad_roles_and_content.jsonl": (7, ["24 of 31 rows", "jsonl:2: field 'messages[0].role'"]),
    "odd/derived/pairs_bad.jsonl": (6, ["11 of 17 rows", "jsonl:2: field 'rejected' holds the chosen completion"]),
    "odd/derived/groups_bad.jsonl": (5, ["10 of 15 rows", "jsonl:3: field 'rejected' is an empty list"]),
    "odd/derived/mixed_schema.jsonl": 8,
    "odd/derived/very_long_samples.jsonl": 5,
    "odd/derived/special_tokens_in_text.jsonl": 8,
    "odd/axolotl/conversation.json": 1,
    "odd/axolotl/conversation.missingturns.json": (0, ["json:1: field 'conversations[1].content' is empty"]),
    "odd/ms-swift/alpaca.jsonl": 3,
    "odd/ms-swift/chatml.jsonl": 3,
    "odd/ms-swift/conversations.jsonl": 3,
    "odd/ms-swift/sharegpt.jsonl": 3,
    "odd/ms-swift/swift_multi.jsonl": 3,
    "odd/naughty_strings/blns.json": (0, ["515 of 515 rows", "blns.json:2[0]: the row is a text", "data.format=text"]),
    "odd/duckdb/array_comma_malformed.json": "array_comma_malformed.json:2: not JSON",
    "odd/duckdb/array_of_empty_arrays.json": (0, ["array_of_empty_arrays.json:2[0]: the row is a list"]),
    "odd/duckdb/different_schemas.ndjson": (0, ["ndjson:1: no format fits its columns ('id', 'name')"]),
    "odd/duckdb/duplicate_column_names.json": (0, ["json:1: no format fits its columns ('id', 'Id', 'iD', 'ID')"]),
    "odd/duckdb/duplicate_key.ndjson": (0, ["ndjson:1: no format fits", "ndjson:3: field 'id' appears twice"]),
    "odd/duckdb/empty.ndjson": "empty.ndjson: the file is empty",
    "odd/duckdb/empty_array.json": "there are no rows in it",
    "odd/duckdb/empty_array_malformed.json": "empty_array_malformed.json:2: not JSON",
    "odd/duckdb/empty_array_trailing.json": "empty_array_trailing.json:4: not JSON: More follows",
    "odd/duckdb/empty_no_newline.json": "there are no rows in it",
    "odd/duckdb/empty_object.ndjson": (0, ["empty_object.ndjson:1: no format fits its columns ('data')"]),
    "odd/duckdb/example_n.ndjson": (0, ["example_n.ndjson:1: no format fits its columns ('id', 'name')"]),
    "odd/duckdb/example_r.ndjson": (0, ["example_r.ndjson:1: no format fits its columns ('id', 'name')"]),
    "odd/duckdb/example_rn.ndjson": (0, ["example_rn.ndjson:1: no format fits its columns ('id', 'name')"]),
    "odd/duckdb/example_rn.ndjson.gz": (0, ["example_rn.ndjson.gz:1: no format fits its columns ('id', 'name')"]),
    "odd/duckdb/inconsistent_schemas.ndjson": (0, ["ndjson:1: no format fits its columns ('id', 'name')"]),
    "odd/duckdb/multiple_objects_per_line.ndjson": (0, ["ndjson:1[0]: no format fits its columns ('id', 'name')"]),
    "odd/duckdb/non_object.ndjson": (0, ["non_object.ndjson:1: no format fits its columns ('data')"]),
    "odd/duckdb/sample_utf8_bom.json": (0, ["json:1: no format fits its columns ('users', 'metadata')"]),
    "odd/duckdb/top_level_array.json": (0, ["json:1[0]: no format fits its columns ('conclusion')"]),
    "odd/duckdb/top_level_two_arrays.json": "top_level_two_arrays.json:2: not JSON: More follows",
    "odd/duckdb/trailing_content.ndjson": (0, ["trailing_content.ndjson:2: not JSON: Expecting value in column 8"]),
    "odd/duckdb/unterminated_quotes.ndjson": (0, ["unterminated_quotes.ndjson:3: not JSON: Unterminated string"]),
    "odd/duckdb/whitespace_only.json": "whitespace_only.json: the file is empty",
}

# The same files, told what their columns mean: the rows that duckdb's own tests find in them.
NAMED = {
    "odd/duckdb/example_n.ndjson": ({"columns": {"text": "name"}}, 5),
    "odd/duckdb/example_r.ndjson": ({"columns": {"text": "name"}}, 5),
    "odd/duckdb/example_rn.ndjson": ({"columns": {"text": "name"}}, 5),
    "odd/duckdb/example_rn.ndjson.gz": ({"columns": {"text": "name"}}, 5),
    "odd/duckdb/multiple_objects_per_line.ndjson": ({"columns": {"text": "name"}}, 5),
    "odd/duckdb/top_level_array.json": ({"columns": {"text": "conclusion"}}, 2),
    "odd/duckdb/different_schemas.ndjson": ({"columns": {"text": "name"}}, 3),
    "odd/duckdb/unterminated_quotes.ndjson": ({"columns": {"text": "name"}}, 4),
    "odd/naughty_strings/blns.json": ({"format": "text"}, 513),  # two of the 515 are blank
}

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
PARTS = [{"role": "user", "content": [{"type": "text", "value": "q"}]}, TALK[1]]
CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
PAIR = {"chosen": "a", "rejected": "b"}
VERDICT = {"messages": TALK, "label": True}


def lines(*values):
    return "\n".join(map(json.dumps, values))


OWN_GOOD = {
    "alpaca.json": (json.dumps([{"instruction": "i", "input": "", "output": "o"}] * 2, indent=1), Demonstration, 2),
    "alpaca_history.jsonl": (
        lines(
            {"instruction": "i", "output": "o", "history": [["q", "a"]], "system": "s"}, {"query": "q", "response": "a"}
        ),
        Demonstration,
        2,
    ),
    "questions.jsonl": (lines({"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}), Demonstration, 2),
    "sharegpt.jsonl": (lines({"id": 1, "conversations": TURNS}, {"conversations": TURNS * 2}), Demonstration, 2),
    "tools.json": (
        json.dumps(
            [
                {
                    "conversations": [TURNS[0], CALL, {"from": "observation", "value": "3"}, TURNS[1]],
                    "tools": '[{"name": "f"}]',
                }
            ]
        ),
        Demonstration,
        1,
    ),
    "parts.jsonl": (lines({"messages": PARTS}), Demonstration, 1),
    "bare_lists.jsonl": (lines(TALK, TALK), Demonstration, 2),
    "verdicts.json": (json.dumps([VERDICT, VERDICT | {"label": False}]), Unpaired, 2),
    "pairs.json": (
        json.dumps([{"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1] | {"value": "b"}}]),
        Preference,
        1,
    ),
    "pairs_of_dialogues.jsonl": (
        lines({"chosen_messages": PARTS, "rejected_messages": [PARTS[0], TALK[1] | {"content": "b"}]}),
        Preference,
        1,
    ),
    "groups.jsonl": (
        lines({"question": "q", "chosen": "a", "rejected": ["b", "c"], "rejected_models": [1, 2]}),
        Preference,
        1,
    ),
    "ranked.jsonl": (lines({"prompt": "q", "chosen": "a", "rejected": ["b", "c"], "scores": [3, 2, 1]}), Preference, 1),
    "texts.jsonl": (lines({"text": "one"}, {"text": "two"}), Text, 2),
    "document.txt": ("one\n\ntwo\n", Text, 1),
}

TWO = lines({"text": "a"}, {"text": "b"})

OWN_ODD = {
    "blank_lines.jsonl": (f"\n\n{TWO}\n \t\n", 2),
    "crlf.jsonl": (TWO.replace("\n", "\r\n"), 2),
    "marked.jsonl": (TWO.encode("utf-8-sig"), 2),
    "packed_named_jsonl.jsonl": (gzip.compress(TWO.encode(), mtime=0), 2),
    "array_named_jsonl.jsonl": (json.dumps([{"text": "a"}, {"text": "b"}]), 2),
    "mixed.jsonl": (
        lines({"question": "q", "answer": "a"}, {"messages": TALK}, {"text": "t"}, {"prompt": "q"} | PAIR),
        4,
    ),
    "only_newlines.jsonl": ("\n\n\n", "only_newlines.jsonl: the file is empty"),
    "cut_off.jsonl": (TWO[:-2], (1, ["cut_off.jsonl:2: not JSON: Unterminated string"])),
    "zeros.jsonl": (f"{TWO}\n\0\0", (2, ["zeros.jsonl:3: NUL bytes"])),
    "wrong_byte.jsonl": (
        TWO.encode() + b'\n{"text":\xff "c"}',
        (2, ["wrong_byte.jsonl:3: byte 0xFF in column 9 is not UTF-8"]),
    ),
    "half_pair.jsonl": (TWO + '\n{"text": "\\ud83d"}', (2, ["half_pair.jsonl:3: field 'text' holds half"])),
    "twice.jsonl": ('{"text": "a", "text": "b"}\n' + TWO, (2, ["twice.jsonl:1: field 'text' appears twice"])),
    "broken_middle.jsonl": (
        TWO.replace("\n", "\n{'text': 1}\nword\nnull\n[]\n{}\n7\n"),
        (2, ["6 of 8 rows", "middle.jsonl:2: not JSON", "middle.jsonl:3: not JSON", "middle.jsonl:4: "]),
    ),
    "gbk.json": ('[\n"文件"]'.encode("gb18030"), "gbk.json:2: byte 0xCE in column 2 is not UTF-8. Save it as UTF-8"),
    "foreign.ndjson": (
        lines({"id": 1, "name": "n"}),
        (0, ["foreign.ndjson:1: no format fits its columns ('id', 'name')"]),
    ),
    "empty_lists.json": ("[\n[],\n[]\n]", (0, ["empty_lists.json:2[0]: the row is a list"])),
    "words.json": ('[\n"one",\n"two"]', (0, ["2 of 2 rows", "words.json:2[0]: the row is a text", "data.format=text"])),
    "no_rows.json": ("[\n]", "there are no rows in it"),
    "two_arrays.json": ("[1]\n[2]", "two_arrays.json:2: not JSON: More follows"),
    "comma.json": ("[\n  ,\n]", "comma.json:2: not JSON"),
    "empty_turn.jsonl": (
        lines({"conversations": [TURNS[0], TURNS[1] | {"value": ""}]}),
        (0, ["empty_turn.jsonl:1: field 'conversations[1].content' is empty"]),
    ),
}

# Of the grammar: ``n_`` is no JSON, ``y_`` is.
OWN_GRAMMAR = {
    "n_unclosed": b"[1,",
    "n_nan": b"[NaN]",
    "n_minus_infinity": b"[-Infinity]",
    "n_missing_colon": b'{"a" 1}',
    "n_number_as_key": b"{1: 1}",
    "n_single_quotes": b"{'a': 0}",
    "n_comma_at_the_end": b'{"a": 0,}',
    "n_comment": b'{"a": /* why */ 1}',
    "n_half_escape": rb'["\ud834\udd"]',
    "n_tab_in_a_text": b'["\t"]',
    "n_line_end_in_a_text": b'["a\nb"]',
    "n_mark_without_data": b"\xef\xbb\xbf",
    "n_half_a_mark": b"\xef\xbb{}",
    "n_latin_1": b'["\xe9"]',
    "n_two_values": b"[][]",
    "y_null": b"null",
    "y_text": b'"a"',
    "y_blank_array": b" [] ",
    "y_repeated_key": b'{"a": 1, "a": 2}',
    "y_escaped_zero": rb'["\u0000"]',
    "y_line_separator": '["\u2028"]'.encode(),
    "y_minus_zero": b"[-0]",
}


def rows(path, **settings):
    defaults = {"format": "auto", "columns": {}, "bad_rows": "error", "validation_path": None}
    source = Files(path=str(path), **(defaults | settings))
    return list(source.rows("train"))


def refusal(path, **settings):
    with pytest.raises(InputError) as refused:
        rows(path, **settings)
    message = str(refused.value)
    assert "\n" not in message
    return message


def write(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def is_refused(path):
    try:
        return any(record.fault for record in read(path))
    except InputError:
        return True


def assert_loads_or_is_refused(path, expected):
    if isinstance(expected, int):
        assert len(rows(path)) == expected
    elif isinstance(expected, str):
        assert expected in refusal(path) and expected in refusal(path, bad_rows="drop")
    else:
        count, words = expected
        message = refusal(path)
        assert all(word in message for word in words) and path.name in message
        if count:
            assert len(rows(path, bad_rows="drop")) == count
        else:
            assert "every row was dropped" in refusal(path, bad_rows="drop")


@pytest.mark.parametrize("name", OWN_GOOD)
def test_good_files_load_with_the_rows_that_they_hold(tmp_path, name):
    content, kind, count = OWN_GOOD[name]
    assert Counter(map(type, rows(write(tmp_path, name, content)))) == Counter([kind] * count)


@pytest.mark.parametrize("name", OWN_ODD)
def test_odd_files_load_or_are_refused_with_the_place_named(tmp_path, name):
    content, expected = OWN_ODD[name]
    assert_loads_or_is_refused(write(tmp_path, name, content), expected)


def test_foreign_columns_load_once_they_are_named(tmp_path):
    path = write(tmp_path, "foreign.ndjson", lines({"id": 1, "name": "n"}, {"id": 2}, {"id": 3, "name": "m"}))
    assert len(rows(path, bad_rows="drop", columns={"text": "name"})) == 2


@pytest.mark.parametrize("name", OWN_GRAMMAR)
def test_what_is_no_json_is_refused_and_what_is_is_parsed(tmp_path, name):
    path = write(tmp_path, f"{name}.json", OWN_GRAMMAR[name])
    assert is_refused(path) == name.startswith("n_")
    assert path.name in refusal(path)


# --- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_real_files_load_with_the_rows_that_they_hold(shared, name):
    kind, count = GOOD[name]
    assert Counter(map(type, rows(shared / "data" / name))) == Counter([kind] * count)


@pytest.mark.parametrize("name", ODD)
def test_real_odd_files_load_or_are_refused_with_the_place_named(shared, name):
    assert_loads_or_is_refused(shared / "data" / name, ODD[name])


@pytest.mark.parametrize("name", NAMED)
def test_real_files_of_foreign_columns_load_once_these_are_named(shared, name):
    settings, count = NAMED[name]
    assert len(rows(shared / "data" / name, bad_rows="drop", **settings)) == count


def test_no_odd_file_is_left_out(shared):
    folder = shared / "data"
    there = {
        file.relative_to(folder).as_posix() for file in folder.glob("odd/*/*") if "json_test_suite" not in file.parts
    }
    assert there == {name for name in ODD if name.startswith("odd/")}
    assert {
        f"{part}/{file.name}" for part in ("sft", "preference", "groups", "text") for file in (folder / part).iterdir()
    } == (set(GOOD) | {name for name in ODD if name.startswith("sft/")})


def test_the_json_test_suite(shared):
    """``n_`` files are refused and ``y_`` files are parsed; none of the ``i_`` files ends in anything else."""
    for path in sorted((shared / "data/odd/json_test_suite").iterdir()):
        refused = is_refused(path)
        if not path.name.startswith("i_"):
            assert refused == path.name.startswith("n_"), path.name


def test_no_file_of_the_json_test_suite_holds_a_row(shared):
    for path in sorted((shared / "data/odd/json_test_suite").iterdir()):
        assert path.name in refusal(path)
