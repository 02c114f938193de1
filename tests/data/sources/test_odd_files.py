"""Every real and every odd file beside the repository: it loads with its rows, or is refused with the place named.

In the tables below a number is the rows that load, ``(rows, words)`` the rows left by ``bad_rows=drop`` and the words
that the refusal under ``bad_rows=error`` must hold, a text the words of a refusal that holds under both.
"""

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


@pytest.mark.parametrize("name", GOOD)
def test_real_files_load_with_the_rows_that_they_hold(shared, name):
    kind, count = GOOD[name]
    assert Counter(map(type, rows(shared / "data" / name))) == Counter([kind] * count)


@pytest.mark.parametrize("name", ODD)
def test_odd_files_load_or_are_refused_with_the_place_named(shared, name):
    path, expected = shared / "data" / name, ODD[name]
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


@pytest.mark.parametrize("name", NAMED)
def test_files_of_foreign_columns_load_once_these_are_named(shared, name):
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
        try:
            refused = any(record.fault for record in read(path))
        except InputError:
            refused = True
        if not path.name.startswith("i_"):
            assert refused == path.name.startswith("n_"), path.name


def test_no_file_of_the_json_test_suite_holds_a_row(shared):
    for path in sorted((shared / "data/odd/json_test_suite").iterdir()):
        assert path.name in refusal(path)
