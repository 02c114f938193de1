import dataclasses
import logging
import multiprocessing
import os
import pickle
import shutil
import threading
from dataclasses import replace

import pytest

from alignlab.data.table import cache, workers
from alignlab.data.table.cache import build_table, table_key, tokenize_stream
from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError, InputErrors
from alignlab.types.rows import Demonstration, Text
from tests.data.tokenise.tiny_tokenizers import CHATML, assistant, byte_tokenizer, token_settings, user

SETTINGS = token_settings()


@pytest.fixture
def tokenizer():
    return byte_tokenizer(template=CHATML)


def good_rows(count: int = 5) -> list[Demonstration]:
    return [
        Demonstration(origin=f"f:{i}", messages=(user("Q" * i), assistant("A" * (i + 1))), columns={"margin": i / 2})
        for i in range(1, count + 1)
    ]


def build(rows, tokenizer, folder, settings=SETTINGS, kind=Demonstration, source="abc", workers=0, fresh=False):
    return build_table(
        iter(rows),
        source_fingerprint=source,
        tokenizer=tokenizer,
        settings=settings,
        kind=kind,
        workers=workers,
        cache_dir=folder,
        fresh=fresh,
    )


def never():
    raise AssertionError("the rows were read although a table was cached")
    yield


def numbered(rows):
    """The rows as a table gives them: each knows its number."""
    return [dataclasses.replace(row, columns={"row": number, **row.columns}) for number, row in enumerate(rows)]


def test_table_gives_back_the_token_rows(tokenizer, tmp_path):
    table = build(good_rows(), tokenizer, tmp_path)
    expected = [tokenize(row, tokenizer, SETTINGS) for row in good_rows()]
    assert list(table) == numbered(expected)
    assert table.lengths.tolist() == [len(row.tokens) for row in expected]
    assert table.num_supervised.tolist() == [sum(row.supervised) for row in expected]
    assert table.counts.kept_rows == len(table) == 5
    assert table.counts.supervised_tokens == table.num_supervised.sum()


def test_table_travels_between_processes(tokenizer, tmp_path):
    table = build(good_rows(), tokenizer, tmp_path)
    assert list(pickle.loads(pickle.dumps(table))) == list(table)


def test_second_build_reads_no_row(tokenizer, tmp_path):
    first = build(good_rows(), tokenizer, tmp_path)
    second = build(never(), tokenizer, tmp_path)
    assert list(second) == list(first) and second.key == first.key


def test_fresh_builds_again(tokenizer, tmp_path):
    build(good_rows(5), tokenizer, tmp_path)
    assert len(build(good_rows(3), tokenizer, tmp_path, fresh=True)) == 3
    assert len(build(never(), tokenizer, tmp_path)) == 3


def test_the_key_is_logged(tokenizer, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger=cache.__name__):
        table = build(good_rows(), tokenizer, tmp_path)
    assert table.key in caplog.text


def test_cache_key_sensitivity(tokenizer, monkeypatch):
    def key(source="abc", tokenizer=tokenizer, settings=SETTINGS, kind=Demonstration):
        return table_key(source, tokenizer, settings, kind)

    other_code = cache.code_text() + "\n"
    keys = {
        "base": key(),
        "source": key(source="abd"),
        "vocabulary": key(tokenizer=byte_tokenizer(template=CHATML, merges=[("a", "b")])),
        "special tokens": key(
            tokenizer=byte_tokenizer(template=CHATML, eos="<|im_end|>", markers=("<|im_start|>", "</s>"))
        ),
        "own template": key(tokenizer=byte_tokenizer(template=CHATML + " ")),
        "named template": key(settings=token_settings(chat_template="plain")),
        "variables of the template": key(tokenizer=byte_tokenizer(template=CHATML + "{{ lang }}")),
        "value of a variable": key(
            tokenizer=byte_tokenizer(template=CHATML + "{{ lang }}"),
            settings=token_settings(chat_template_kwargs={"lang": "eo"}),
        ),
        "special tokens as text": key(settings=token_settings(special_tokens="text")),
        "limit": key(settings=token_settings(max_tokens_per_sequence=7)),
        "truncation": key(settings=token_settings(truncation="drop")),
        "loss": key(settings=token_settings(loss_on="last")),
        "bad rows": key(settings=token_settings(bad_rows="drop")),
        "cross attention": key(settings=token_settings(cross_document_attention=True)),
        "kind": key(kind=Text),
    }
    monkeypatch.setattr(cache, "code_text", lambda: other_code)
    keys["code"] = key()
    assert len(set(keys.values())) == len(keys), keys


def test_cache_key_is_the_same_for_the_same_content(tokenizer):
    again = byte_tokenizer(template=CHATML)
    tokenize(good_rows(1)[0], again, SETTINGS)
    assert table_key("abc", tokenizer, SETTINGS, Text) == table_key("abc", again, replace(SETTINGS), Text)


def test_cache_key_follows_the_content_of_a_template_file(tokenizer, tmp_path):
    file = tmp_path / "mine.jinja"
    settings = token_settings(chat_template=str(file))
    file.write_text(CHATML)
    before = table_key("abc", tokenizer, settings, Demonstration)
    file.write_text(CHATML + "!")
    assert table_key("abc", tokenizer, settings, Demonstration) != before


def test_code_text_covers_the_package():
    assert "def truncate(" in cache.code_text() and "class TokenRow" in cache.code_text()


def test_processes_give_the_same_rows_in_the_same_order(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_ROWS_PER_TASK", 3)
    rows = good_rows(40)
    assert list(build(rows, tokenizer, tmp_path / "2", workers=2)) == list(build(rows, tokenizer, tmp_path / "0"))


@pytest.mark.parametrize(("small", "expected"), [(10, 0), (3, 2)])
def test_workers_are_chosen_by_the_number_of_rows(tokenizer, tmp_path, monkeypatch, small, expected):
    started = []
    monkeypatch.setattr(workers, "_SMALL", small)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {0, 1})
    in_processes = workers._tokenize_in_processes
    monkeypatch.setattr(
        workers, "_tokenize_in_processes", lambda *args: started.append(args[-1]) or in_processes(*args)
    )
    assert len(build(good_rows(5), tokenizer, tmp_path, workers=None)) == 5
    assert started == ([expected] if expected else [])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_surface_with_their_type_and_together(tokenizer, tmp_path, num_workers):
    bad = [Demonstration(origin=f"bad:{i}", messages=(user("Q"),)) for i in range(20)]
    with pytest.raises(InputErrors) as caught:
        build([*good_rows(), *bad], tokenizer, tmp_path, workers=num_workers)
    assert len(caught.value.errors) == 5
    assert "bad:0 " in str(caught.value) and "bad:4 " in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_an_error_of_the_source_leaves_nothing_behind(tokenizer, tmp_path):
    def rows():
        yield from good_rows()
        raise InputError("f.jsonl:6", "it is broken", "Mend it")

    with pytest.raises(InputError, match="it is broken"):
        build(rows(), tokenizer, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert len(build(good_rows(), tokenizer, tmp_path)) == 5


def test_bad_rows_are_dropped_counted_and_told(tokenizer, tmp_path, caplog):
    rows = [*good_rows(), Demonstration(origin="bad:1", messages=(user("Q"),))]
    with caplog.at_level(logging.WARNING, logger=cache.__name__):
        table = build(rows, tokenizer, tmp_path, settings=token_settings(bad_rows="drop"))
    assert (table.counts.kept_rows, table.counts.dropped_rows) == (5, 1)
    assert "bad:1" in caplog.text


def test_thresholds_hold_for_a_cached_table_too(tokenizer, tmp_path):
    settings = token_settings(max_tokens_per_sequence=40, truncation="drop", max_dropped_fraction=0.1)
    rows = [*good_rows(3), *good_rows(60)[50:]]
    for attempt in (rows, never()):
        with pytest.raises(InputError, match=r"max_dropped_fraction=0\.1"):
            build(attempt, tokenizer, tmp_path, settings=settings)


def test_texts_become_blocks(tokenizer, tmp_path):
    texts = [Text(origin=f"t:{i}", text="abcdef"[:i]) for i in range(1, 6)]
    table = build(texts, tokenizer, tmp_path, settings=token_settings(max_tokens_per_sequence=8), kind=Text)
    assert table.lengths.tolist() == [8, 8, 4]
    assert (table.counts.kept_rows, table.counts.kept_tokens) == (5, 20)


def test_no_rows_make_an_empty_table(tokenizer, tmp_path):
    table = build([], tokenizer, tmp_path)
    assert (len(table), table.lengths.tolist(), table.num_supervised.tolist()) == (0, [], [])


def test_stream_gives_the_same_rows_and_tells_what_it_drops(tokenizer, tmp_path, caplog):
    settings = token_settings(max_tokens_per_sequence=50, truncation="drop")
    rows = good_rows(30)
    streamed = list(tokenize_stream(iter(rows), tokenizer, settings, Demonstration))
    assert numbered(streamed) == list(build(rows, tokenizer, tmp_path, settings=settings))
    assert 0 < len(streamed) < 30
    assert "dropped f:30" in caplog.text


def test_stream_reads_no_further_than_asked(tokenizer):
    def endless():
        yield from good_rows(1)
        raise AssertionError("read on")

    assert next(tokenize_stream(endless(), tokenizer, SETTINGS, Demonstration)).origin == "f:1"


def test_stream_raises_at_a_bad_row(tokenizer):
    bad = Demonstration(origin="bad:1", messages=(user("Q"),))
    with pytest.raises(InputError, match="bad:1"):
        list(tokenize_stream(iter([bad]), tokenizer, SETTINGS, Demonstration))


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def _be_a_folder(file):
    file.unlink()
    file.mkdir()


DAMAGES = {
    "one bit": _flip_a_bit,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "removed": lambda file: file.unlink(),
    "garbage": lambda file: file.write_bytes(os.urandom(100)),
    "a folder": _be_a_folder,
}


@pytest.mark.parametrize("name", ["rows.arrow", "counts.json", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_made_again_and_said(tokenizer, tmp_path, caplog, damage, name):
    whole = build(good_rows(), tokenizer, tmp_path)
    damage(whole.folder / name)
    again = build(good_rows(), tokenizer, tmp_path)
    assert list(again) == numbered(tokenize(row, tokenizer, SETTINGS) for row in good_rows())
    assert "are damaged" in caplog.text and name in caplog.text
    assert list(build(never(), tokenizer, tmp_path)) == list(again)


def test_a_file_in_place_of_a_table_is_replaced(tokenizer, tmp_path):
    folder = build(good_rows(), tokenizer, tmp_path).folder
    shutil.rmtree(folder)
    folder.write_text("x")
    assert len(build(good_rows(), tokenizer, tmp_path)) == 5


def test_half_made_tables_are_cleared_once_their_process_is_dead(tokenizer, tmp_path):
    for name in (".building-dead", ".building-living"):
        (tmp_path / name).mkdir()
    with cache._lock(tmp_path / "living"):
        build(good_rows(), tokenizer, tmp_path)
        assert {path.name for path in tmp_path.glob(".building-*")} == {".building-living"}
    build(good_rows(), tokenizer, tmp_path)
    assert not list(tmp_path.glob(".building-*"))


def test_a_table_that_was_half_made_is_made_whole(tokenizer, tmp_path):
    key = table_key("abc", tokenizer, SETTINGS, Demonstration)
    (tmp_path / f".building-{key}").mkdir()
    assert len(build(good_rows(), tokenizer, tmp_path)) == 5
    assert not list(tmp_path.glob(".building-*"))


def test_two_processes_make_one_table(tokenizer, tmp_path):
    """The second waits, and then finds the table of the first, also where both were told to make it afresh."""
    started, go_on = multiprocessing.Event(), multiprocessing.Event()

    def slow_rows():
        started.set()
        assert go_on.wait(20)
        yield from good_rows()

    context = multiprocessing.get_context("fork")
    first = context.Process(target=build, args=(slow_rows(), tokenizer, tmp_path))
    first.start()
    assert started.wait(20)
    threading.Timer(0.3, go_on.set).start()
    assert len(build(never(), tokenizer, tmp_path, fresh=True)) == 5
    first.join()
    assert first.exitcode == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_are_too_long_are_summed_up(tokenizer, tmp_path, workers):
    texts = ["a" * (30 if index % 3 == 0 else 2) for index in range(40)]
    texts[20] = "a" * 50
    rows = [
        Demonstration(origin=f"f:{index}", messages=(user("Q"), assistant(text))) for index, text in enumerate(texts)
    ]
    with pytest.raises(InputError) as refusal:
        build(rows, tokenizer, tmp_path, settings=token_settings(max_tokens_per_sequence=30), workers=workers)
    message = str(refusal.value)
    assert "15 of 40 rows have longer sequences: f:0 (" in message
    assert "f:12 (" in message and "f:15" not in message and "and 10 more; the longest is f:20 with" in message
    length = int(message.partition("the longest is f:20 with ")[2].partition(".")[0])
    assert f"Type data.max_tokens_per_sequence={length}, or data.truncation=drop" in message
    table = build(rows, tokenizer, tmp_path, settings=token_settings(max_tokens_per_sequence=length), workers=workers)
    assert len(table) == 40
