"""Mutated data files, read, made rows and tokenised in one long-lived process: rows or refusals, and no row is lost."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignlab.data.formats import FORMATS
from alignlab.data.formats.conversions import convert, converts
from alignlab.data.sources.files import is_dialogue, read
from alignlab.data.sources.local import Files
from alignlab.data.table.cache import build_table
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference, Prompt, Row, Text, Unpaired
from tests.data.tokenise.tiny_tokenizers import CHATML, byte_tokenizer, token_settings
from tests.faults.cases import Case, time_limit

SECONDS = 20
KINDS = (Preference, Unpaired, Demonstration, Prompt, Text)

CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
GOOD: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "system", "content": "Be brief."}, *CHAT]},
    {"messages": CHAT, "tools": [{"name": "add", "parameters": {}}]},
    {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    {"instruction": "Add.", "input": "2 + 2", "output": "4", "history": [["1 + 1", "2"]], "system": "Be brief."},
    {"prompt": "2 + 2?", "completion": "4", "weight": 0.5},
    {"prompt": "2 + 2?", "response": "4"},
    {"question": "2 + 2?", "answer": "4"},
    {"query": "2 + 2?", "response": "4"},
    {"input": "2 + 2?", "output": "4"},
    {"text": "Two and two are four."},
    {"prompt": "2 + 2?", "answer": 4},
    {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "5"}], "margin": 1.5},
    {"prompt": "2 + 2?", "chosen": "4", "rejected": ["5", "6"]},
    {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "5"}]},
    {"prompt": "2 + 2?", "completions": ["4", "5", "6"], "scores": [3, 1, 0]},
    {"instruction": "2 + 2?", "output": ["4", "5"]},
    {"prompt": "2 + 2?", "completion": "4", "label": True},
    {"messages": CHAT, "label": False},
)
"""One good row of every format."""

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**400, "", " ", "\x00", "\ud800", "ä😀", "nan", "1e400",
    "<|im_end|>", "[[[", "[" * 3000, "{}", [], {}, [[]], [None], [{}], [1, 2], {"a": None}, {"role": "user"},
    {"role": ["user"], "content": [{"type": ["text"], "text": 1}]}, {"role": "user", "content": None},
    [{"type": "text", "text": "x"}, {"type": "image"}], "x" * 5000, [["a", "b"], ["c"]], [["a"] * 5], {"": ""}, CHAT,
)  # fmt: skip
"""Values that stand where others belong."""

CELLS = (datetime(2026, 1, 2, 3, 4), date(2026, 1, 2), Decimal("1.25"), b"\xff\x00", float("nan"), 2**63 - 1, None)
"""Values that Parquet knows and JSON does not."""


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """3,200 files; 100 where it shall be quick."""
    tokenizer = byte_tokenizer(template=CHATML)
    count = 100 if small else 3200
    return [Case(f"file {seed} {number}", partial(accounted, tokenizer, f"{seed} {number}")) for number in range(count)]


def accounted(tokenizer, seed: str, folder: Path) -> None:
    """Rows or refusals, nothing else; and every record of the file is a row, or refused, or dropped and counted."""
    chance = random.Random(seed)
    records = [mutated(chance) for _ in range(chance.randint(1, 6))]
    name = chance.choice(list(WRITERS))
    path = folder / name
    written = WRITERS[name](path, records)
    is_damaged = chance.random() < 0.25
    if is_damaged:
        _spoil(path, chance)
    bad_rows = chance.choice(("drop", "drop", "error"))
    told = f"{name}, bad_rows={bad_rows}, {records if not is_damaged else path.read_bytes()[:300]}"
    try:
        with time_limit(SECONDS):
            num_read = len(list(read(path)))
            assert is_damaged or num_read == written, f"{written} records written, {num_read} read"
            _train_on(path, folder, tokenizer, bad_rows, num_read, chance)
    except InputError as refusal:
        assert str(refusal).strip(), "a refusal without words"
    except (Exception, SystemExit) as error:
        raise AssertionError(
            f"{type(error).__name__}: {str(error)[:200]} ({_place(error)}) for {told[:500]}"
        ) from error


def mutated(chance: random.Random) -> Any:
    """A good row with some of its values, names or nesting changed."""
    record = json.loads(json.dumps(chance.choice(GOOD)))
    for _ in range(chance.choice((0, 0, 1, 1, 2, 3))):
        record = _change(chance, record)
    is_several = isinstance(record, list) and not is_dialogue(record)  # an array of rows, not one row
    return {"items": record} if is_several else record


def _train_on(path: Path, folder: Path, tokenizer, bad_rows: str, num_read: int, chance: random.Random) -> None:
    source = _source(path, bad_rows, chance.choice(("auto", "auto", "auto", *FORMATS)))
    rows = list(source.rows("train"))
    dropped = sum(source.dropped.values())
    assert len(rows) + dropped == num_read, f"{num_read} records, {len(rows)} rows, {dropped} dropped"
    kind = chance.choice([kind for kind in KINDS if converts(rows[0], kind)])
    fitting = [row for row in rows if converts(row, kind)]
    settings = token_settings(bad_rows=bad_rows, truncation="drop", loss_on=chance.choice(("assistant", "last", "all")))
    table = _table((convert(row, kind) for row in fitting), kind, folder, tokenizer, settings)
    counted = table.counts.kept_rows + table.counts.dropped_rows
    assert counted == len(fitting), f"{len(fitting)} rows, {counted} kept or dropped"
    assert kind is Text or len(table) == table.counts.kept_rows
    for row in table:
        assert len(row.tokens) == len(row.supervised)


def _source(path: Path, bad_rows: str, format: str) -> Files:
    return Files(path=str(path), format=format, columns={}, bad_rows=bad_rows, validation_path=None)


def _table(rows: Any, kind: type[Row], folder: Path, tokenizer, settings):
    return build_table(
        rows, "source", tokenizer, settings, kind, workers=0, cache_dir=folder / "cache", fresh=False
    )  # fmt: skip


# --- mutations --------------------------------------------------------------------------------------------------------


def _change(chance: random.Random, value: Any) -> Any:
    """A value with something odd in a random place of it."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        how = chance.random()
        if how < 0.7:
            return {**value, key: _change(chance, value[key])}
        if how < 0.8:
            return {name: item for name, item in value.items() if name != key}
        return {
            **value,
            chance.choice((key.upper(), key + " ", "images", "label", "margin", "tools", "")): chance.choice(ODD),
        }
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        how = chance.random()
        if how < 0.6:
            return [*value[:at], _change(chance, value[at]), *value[at + 1 :]]
        return value[:at] + value[at + 1 :] if how < 0.8 else [*value, *value[at:]]
    return chance.choice(ODD)


def _spoil(path: Path, chance: random.Random) -> None:
    """Some bytes flipped, cut off or put in."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        how = chance.random()
        if how < 0.5 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif how < 0.75:
            del content[at : at + chance.randint(1, 20)]
        else:
            content[at:at] = chance.randbytes(chance.randint(1, 5))
    path.write_bytes(content)


# --- files: each writer gives the number of records that it wrote ----------------------------------------------------


def _jsonl(path: Path, records: list[Any]) -> int:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return len(records)


def _json(path: Path, records: list[Any]) -> int:
    path.write_text(json.dumps(records))
    return len(list(read(path))) if _is_one_dialogue(records) else len(records)


def _gzip(path: Path, records: list[Any]) -> int:
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    return len(records)


def _csv(path: Path, records: list[Any]) -> int:
    flat = [record if isinstance(record, dict) else {"text": record} for record in records]
    columns = list(dict.fromkeys(name for record in flat for name in record)) or ["text"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    cells = [
        {name: item if isinstance(item, str) else json.dumps(item) for name, item in record.items()} for record in flat
    ]
    writer.writerows(cells)
    path.write_text(text.getvalue(), errors="surrogatepass")
    return len(flat)


def _parquet(path: Path, records: list[Any]) -> int:
    chance = random.Random(json.dumps(records))
    flat = [record for record in records if isinstance(record, dict)] or [{"text": "x"}]
    columns = {name: _column([record.get(name) for record in flat]) for name in flat[0] if name}
    columns["extra"] = pa.array([chance.choice(CELLS)] * len(flat))
    pq.write_table(pa.table(columns), path)
    return len(flat)


def _text(path: Path, records: list[Any]) -> int:
    path.write_text(json.dumps(records[0], ensure_ascii=False), errors="surrogatepass")
    return 1


WRITERS: dict[str, Callable[[Path, list[Any]], int]] = {
    "rows.jsonl": _jsonl,
    "rows.json": _json,
    "rows.jsonl.gz": _gzip,
    "rows.csv": _csv,
    "rows.parquet": _parquet,
    "rows.txt": _text,
}


def _column(values: list[Any]) -> pa.Array:
    """A column as Parquet takes it; texts where the values are of several types or of none."""
    try:
        column = pa.array(values)
        pq.write_table(pa.table({"x": column}), pa.BufferOutputStream())
        return column
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
        return pa.array([json.dumps(value) for value in values])


def _is_one_dialogue(records: list[Any]) -> bool:
    return all(isinstance(record, dict) and ("role" in record or "from" in record) for record in records)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
