"""Read JSON rows in any shape: lines, an array, consecutive or pretty-printed objects, ``{"data": [...]}``.

A file whose first line holds complete values is read line by line, lazily, and a syntax error affects only its own
line. Any other file is one document, held in memory as text, and a syntax error stops the reading. ``strict_json``
lists which values are refused.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from alignlab.data.sources.files.decode import how_to_convert, require_decoded, undecoded
from alignlab.data.sources.files.record import Record, faulty, is_dialogue
from alignlab.data.sources.files.strict_json import UNREADABLE, complaint, decode
from alignlab.errors import InputError

WRAPPERS = ("data", "rows", "examples", "instances", "train")
SPACE = re.compile(r"[ \t\n\r]*")


def json_records(name: str, stream: TextIO) -> Iterator[Record]:
    """Read the records of a JSON file of any shape.

    Raises:
        InputError: The file is empty, or it is one document with a syntax error.
    """
    lines = enumerate(stream, 1)
    number, line = next(((number, line) for number, line in lines if line.strip(" \t\n\r")), (0, ""))
    if not number:
        raise InputError(name, "the file is empty", "Point data.path at a file with rows")
    if _holds_rows(line):
        yield from _lines(name, number, itertools.chain([line], stream))
    else:
        yield from _document(name, "\n" * (number - 1) + line + stream.read())


def _holds_rows(line: str) -> bool:
    """Whether the first line holds complete rows, and is not the beginning (or all) of an array or a wrapper."""
    line = line.rstrip()
    try:
        first, _ = json.JSONDecoder().raw_decode(line, _skip(line, 0))
    except json.JSONDecodeError as error:
        # A string cannot continue on the next line; an array or an object can.
        return error.msg.startswith("Unterminated string") or error.pos < len(line)
    except UNREADABLE:
        return True
    return is_dialogue(first) or not (isinstance(first, list) or _wrapped(first))


def _lines(name: str, number: int, lines: Iterable[str]) -> Iterator[Record]:
    for line_number, line in enumerate(lines, number):
        origin = f"{name}:{line_number}"
        if problem := undecoded(line):
            yield faulty(origin, problem, how_to_convert(name))
            continue
        try:
            records = [record for _, record in _consecutive(origin, line.rstrip("\n"))]
        except UNREADABLE as error:
            yield faulty(origin, complaint(error))
        else:
            several = len(records) > 1
            yield from (r._replace(origin=f"{origin}[{i}]") if several else r for i, r in enumerate(records))


def _document(name: str, text: str) -> Iterator[Record]:
    require_decoded(name, text)
    start = _skip(text, 0)
    try:
        if text[start] == "[" and not _is_dialogue(text, start):
            yield from _elements(name, text, start)
        else:
            yield from _top_level(name, text)
    except UNREADABLE as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise InputError(f"{name}:{line}", complaint(error), "Correct the file") from error


def _top_level(name: str, text: str) -> Iterator[Record]:
    """Consecutive objects, or a single object that wraps the rows."""
    line, last, records = 1, 0, []
    for at, record in _consecutive("", text):
        line, last = line + text.count("\n", last, at), at
        records.append(record._replace(origin=f"{name}:{line}"))
    wrapper = _wrapped(records[0].value) if len(records) == 1 else None
    if wrapper and not records[0].fault:
        yield from (Record(f"{name}:{line} {wrapper}[{i}]", v) for i, v in enumerate(records[0].value[wrapper]))
    else:
        yield from records


def _elements(name: str, text: str, at: int) -> Iterator[Record]:
    """Yield the elements of the array that opens at a position, with the line on which each begins."""
    line, last = 1, 0
    at = _skip(text, at + 1)
    for index in itertools.count():
        if index == 0 and text[at : at + 1] == "]":
            break
        line, last = line + text.count("\n", last, at), at
        record, end = _decode(f"{name}:{line}[{index}]", text, at)
        yield record
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        at = _skip(text, at + 1)
    if (rest := _skip(text, at + 1)) < len(text):
        raise json.JSONDecodeError("More follows after the end of the array of rows", text, rest)


def _is_dialogue(text: str, at: int) -> bool:
    """Whether the array that opens at a position is one dialogue; it is parsed in full only if it begins like one."""
    return is_dialogue([_first_element(text, at)]) and is_dialogue(json.JSONDecoder().raw_decode(text, at)[0])


def _first_element(text: str, at: int) -> Any:
    at = _skip(text, at + 1)
    return None if text[at : at + 1] == "]" else json.JSONDecoder().raw_decode(text, at)[0]


def _consecutive(origin: str, text: str) -> Iterator[tuple[int, Record]]:
    """Yield consecutive values, with the position at which each begins."""
    at = _skip(text, 0)
    while at < len(text):
        record, end = _decode(origin, text, at)
        yield at, record
        at = _skip(text, end)


def _decode(origin: str, text: str, at: int) -> tuple[Record, int]:
    found = decode(text, at)
    if found.problem:
        return faulty(origin, found.problem), found.end
    return Record(origin, found.value, repeated=found.repeated), found.end


def _wrapped(value: Any) -> str | None:
    """The key that holds the rows, if an object is a wrapper of rows."""
    keys = [key for key in WRAPPERS if isinstance(value, dict) and isinstance(value.get(key), list)]
    return keys[0] if len(keys) == 1 and not is_dialogue(value[keys[0]]) else None


def _skip(text: str, at: int) -> int:
    return SPACE.match(text, at).end()
