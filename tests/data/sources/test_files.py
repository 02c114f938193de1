"""Reading files: shapes of JSON, compression, encodings, tables, folders."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from alignlab.data.sources.files import read
from alignlab.errors import InputError

ROWS = [{"text": "a"}, {"text": "é 你"}, {"text": "line\u2028separator"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path):
    return [record.value for record in read(path)]


SHAPES = {
    "lines": LINES,
    "final newline": LINES + "\n",
    "blank lines": "\n \n" + LINES.replace("\n", "\n\n") + "\n\n",
    "crlf": LINES.replace("\n", "\r\n"),
    "cr": LINES.replace("\n", "\r"),
    "array on one line": json.dumps(ROWS),
    "array, pretty": json.dumps(ROWS, indent=2),
    "one row of an array per line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "objects side by side": LINES.replace("\n", ""),
    "pretty objects": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "data key": json.dumps({"version": 1, "data": ROWS}),
    "data key, pretty": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "utf-8 with mark": LINES.encode("utf-8-sig"),
    "utf-16 little endian": LINES.encode("utf-16"),
    "utf-16 big endian": b"\xfe\xff" + LINES.encode("utf-16-be"),
    "gzip": gzip.compress(LINES.encode(), mtime=0),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson", ".jsonl.gz"])
def test_every_shape_of_json_gives_the_same_rows_under_every_name(tmp_path, shape, suffix):
    assert values(write(tmp_path, f"rows{suffix}", SHAPES[shape])) == ROWS


@pytest.mark.parametrize(
    ("content", "origins"),
    [
        (LINES, ["f.json:1", "f.json:2", "f.json:3"]),
        ("\n\n" + LINES, ["f.json:3", "f.json:4", "f.json:5"]),
        (LINES.replace("\n", " "), ["f.json:1[0]", "f.json:1[1]", "f.json:1[2]"]),
        (json.dumps(ROWS, indent=1), ["f.json:2[0]", "f.json:5[1]", "f.json:8[2]"]),
        ("\n" + json.dumps(ROWS, indent=1), ["f.json:3[0]", "f.json:6[1]", "f.json:9[2]"]),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS), ["f.json:1", "f.json:4", "f.json:7"]),
        (json.dumps({"data": ROWS}), ["f.json:1 data[0]", "f.json:1 data[1]", "f.json:1 data[2]"]),
    ],
)
def test_origins_name_the_line_from_one_and_the_row_from_zero(tmp_path, content, origins):
    assert [record.origin for record in read(write(tmp_path, "f.json", content))] == origins


def test_lines_are_read_lazily_and_a_broken_one_spoils_only_itself(tmp_path):
    records = read(write(tmp_path, "f.jsonl", '{"a": 1}\n{"a": "open\n{"a": 3}\n'))
    assert next(records).value == {"a": 1}
    broken, last = records
    assert (broken.origin, broken.value, last.value) == ("f.jsonl:2", None, {"a": 3})
    assert "f.jsonl:2: not JSON: Unterminated string" in str(broken.fault)


def test_a_list_of_messages_is_one_row_and_a_list_of_others_is_many(tmp_path):
    dialogue = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert values(write(tmp_path, "one.json", json.dumps(dialogue, indent=1))) == [dialogue]
    assert values(write(tmp_path, "lines.jsonl", f"{json.dumps(dialogue)}\n" * 2)) == [dialogue] * 2
    assert values(write(tmp_path, "array.json", json.dumps([dialogue] * 2))) == [dialogue] * 2
    assert values(write(tmp_path, "plain.json", '["a", "b"]')) == ["a", "b"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"role": "user"}, {"prompt": "a", "completion": "b"}],
        [{"role": "user", "content": "q"}, {"prompt": "a", "completion": "b"}],
        [{"role": "baker", "name": "Ann"}, {"role": "smith", "name": "Bob"}],
        [{"from": "ann@x", "text": "hello"}, {"from": "bob@x", "text": "hi"}],
    ],
)
def test_columns_named_role_or_from_make_no_dialogue(tmp_path, rows):
    for text in (json.dumps(rows), json.dumps(rows, indent=1)):
        assert values(write(tmp_path, "array.json", text)) == rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": "\xff"}', "byte 0xFF in column 8 is not UTF-8"),
        ('{"a": NaN}', "field 'a' is nan"),
        ('{"a": {"b": [1, -Infinity]}}', "field 'a.b[1]' is -inf"),
        ('{"a": 1e999}', "field 'a' is inf"),
        (r'{"a": "\ud83d"}', "field 'a' holds half of a surrogate pair"),
        ("\0\0", "NUL bytes in column 1"),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
    ],
)
def test_what_is_no_json_value_or_no_text_is_named(tmp_path, content, words):
    (record,) = read(write(tmp_path, "f.jsonl", content))
    assert words in str(record.fault) and str(record.fault).startswith("f.jsonl:1: ")


def test_a_whole_surrogate_pair_is_text(tmp_path):
    assert values(write(tmp_path, "f.jsonl", r'{"a": "\ud83d\udc4d"}')) == [{"a": "👍"}]


def test_repeated_keys_are_told(tmp_path):
    (record,) = read(write(tmp_path, "f.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}'))
    assert record.repeated == ("c", "a") and record.value["a"] == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "f.json: the file is empty"),
        (" \n\n", "f.json: the file is empty"),
        ("[\n1,\n", "f.json:3: not JSON"),
        ("[\n1,\n\n2 3]", "f.json:4: not JSON: Expecting ',' or ']'"),
        ("[1]\n[2]", "f.json:2: not JSON: More follows"),
        ('{\n"a": 1\n}\n}', "f.json:4: not JSON"),
        ("[\n'x']", "f.json:2: not JSON"),
        (
            '[\n\n"文件"]'.encode("gb18030"),
            "f.json:3: byte 0xCE in column 2 is not UTF-8. Save it as UTF-8: iconv -f GB18030",
        ),
        (gzip.compress(b'{"a": 1}', mtime=0)[:-9], "the gzip data are damaged"),
        (b"\xff\xfea", "UTF-16"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused_with_its_line(tmp_path, content, words):
    with pytest.raises(InputError) as refusal:
        list(read(write(tmp_path, "f.json", content)))
    assert words in str(refusal.value)


def test_csv_cells_are_texts_and_may_span_lines(tmp_path):
    path = write(tmp_path, "f.csv", '\ufeffprompt,completion\r\n"a\n""b""",1\r\n\r\nc,\r\nd,e,f\r\n')
    first, second, third = read(path)
    assert first.value == {"prompt": 'a\n"b"', "completion": "1"} and first.origin == "f.csv:2"
    assert second.value == {"prompt": "c", "completion": ""}
    assert third.origin == "f.csv:6" and "3 cells where the header names 2" in str(third.fault)


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "empty"), ("a,a\n1,2\n", "empty or repeated names"), ('a\n"b"c\n', "not CSV"), ('a\n"b', "not CSV")],
)
def test_broken_csv_is_refused(tmp_path, content, words):
    with pytest.raises(InputError, match=words):
        list(read(write(tmp_path, "f.csv", content)))


def test_long_csv_cells_are_read(tmp_path):
    assert len(values(write(tmp_path, "f.csv", f"text\n{'x' * 200_000}\n"))[0]["text"]) == 200_000


def test_cells_of_tsv_are_separated_by_tabs(tmp_path):
    path = write(tmp_path, "f.tsv", 'prompt\tcompletion\na,b\t"c\td"\n')
    assert values(path) == [{"prompt": "a,b", "completion": "c\td"}]


def test_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    records = list(read(tmp_path / "f.parquet"))
    assert [record.value for record in records] == ROWS and records[2].origin == "f.parquet[2]"
    with pytest.raises(InputError, match=r"bad.parquet: not a Parquet file"):
        list(read(write(tmp_path, "bad.parquet", "PAR1")))


def test_a_text_file_is_one_document(tmp_path):
    assert values(write(tmp_path, "f.txt", "one\r\n\r\ntwo\n")) == [{"text": "one\n\ntwo\n"}]
    with pytest.raises(InputError, match="is empty"):
        values(write(tmp_path, "g.txt", "\n"))


def test_a_folder_is_all_its_known_files_in_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.jsonl", "a.txt", "deep/c.json", "README.md", ".hidden.jsonl"):
        write(tmp_path, name, '{"text": "x"}')
    assert [record.origin for record in read(tmp_path)] == ["a.txt:1", "b.jsonl:1", "deep/c.json:1"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rwos.jsonl", "Did you mean 'rows.jsonl'"),
        ("nowhere/x.json", "no folder"),
        ("f.xlsx", "unknown kind"),
        ("empty", "no file"),
    ],
)
def test_paths_that_hold_nothing_are_refused(tmp_path, name, words):
    write(tmp_path, "rows.jsonl", "{}"), write(tmp_path, "f.xlsx", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=words):
        list(read(tmp_path / name))
