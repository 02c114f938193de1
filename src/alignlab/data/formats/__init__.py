"""Formats: convert a record to a row, by the name of the format or by the columns of the record.

``auto`` chooses the first format of ``FORMATS`` that fits, for each record separately, so one file may mix formats.

| the record | what happens |
|---|---|
| columns that the format does not read | kept in ``Row.columns`` |
| no format fits; a value that is neither an object nor a bare list of messages | refused |
| a bare text, under ``data.format=text`` | a document |
| a key that appears twice in one object | refused: one of the values would be lost silently |
| filled ``images``, ``videos`` or ``audios`` | refused: only text can be trained on |

The modules ``messages``, ``prompts``, ``demonstrations``, ``preferences``, ``scored`` and ``encoded`` list what each
format accepts and refuses.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from alignlab.data.formats.demonstrations import alpaca_prompt, completion, dialogue, prompt, text
from alignlab.data.formats.encoded import pair, sequence
from alignlab.data.formats.fields import BadRow, type_name, without_filled_nulls
from alignlab.data.formats.preferences import preference, ranked, unpaired
from alignlab.data.formats.scored import scored
from alignlab.data.sources.files.record import MEND, Record, is_dialogue
from alignlab.errors import InputError, nearest
from alignlab.types.rows import Row

MEDIA = ("images", "videos", "audios")


class Format(NamedTuple):
    """How to recognise and read the records of one format.

    Args:
        read: Makes a row of a record and its origin. It pops the fields that it reads; the others become columns.
        fits: Whether ``auto`` takes a record for this format.
    """

    read: Callable[[dict[str, Any], str], Row]
    fits: Callable[[Mapping[str, Any]], bool]


def _has_any(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda record: any(name in record for name in names)


def _pair(prompt_name: str, completion_name: str) -> Format:
    read = partial(completion, prompt=prompt_name, completion=completion_name)
    return Format(read, lambda record: prompt_name in record and completion_name in record)


def _is_ranked(record: Mapping[str, Any]) -> bool:
    output = record.get("output")
    return "completions" in record or ("instruction" in record and isinstance(output, list) and len(output) > 1)


def _has_verdict(record: Mapping[str, Any]) -> bool:
    """Whether a label can only be meant as a verdict: numbers and other words may be classes of another task."""
    label = record.get("label")
    verdict = isinstance(label, bool) or str(label).lower() in (
        "true",
        "false",
        "good",
        "bad",
        "desirable",
        "undesirable",
    )
    verdict |= _has_any("kto_tag", "desirable")(record)
    return verdict and _has_any("messages", "conversations", "completion", "response", "output")(record)


# In the order of detection: formats with more specific columns first.
FORMATS: dict[str, Format] = {
    "preference": Format(preference, _has_any("chosen", "rejected", "chosen_messages", "rejected_messages")),
    "scored": Format(scored, lambda record: "completions" in record and "rewards" in record),
    "ranked": Format(ranked, _is_ranked),
    "unpaired": Format(unpaired, _has_verdict),
    "tokens": Format(sequence, _has_any("input_ids")),
    "token_pairs": Format(pair, _has_any("prompt_input_ids")),
    "messages": Format(dialogue, _has_any("messages")),
    "sharegpt": Format(dialogue, _has_any("conversations", "conversation")),
    "alpaca": Format(partial(completion, prompt="instruction", completion="output"), _has_any("instruction")),
    "alpaca_prompt": Format(alpaca_prompt, lambda record: False),  # only by its name
    "prompt_completion": _pair("prompt", "completion"),
    "prompt_response": _pair("prompt", "response"),
    "question_answer": _pair("question", "answer"),
    "query_response": _pair("query", "response"),
    "input_output": _pair("input", "output"),
    "text": Format(text, _has_any("text")),
    "prompt": Format(prompt, _has_any("prompt")),
}


def check_format(name: str) -> None:
    """Check that a name is ``auto`` or a format.

    Raises:
        InputError: It is neither; the error suggests the nearest name.
    """
    if name != "auto" and name not in FORMATS:
        raise InputError(f"data.format={name}", "there is no such format", nearest(name, ["auto", *FORMATS]))


def to_row(record: Record, format: str, columns: Mapping[str, str]) -> Row:
    """Convert a record to a row.

    Args:
        record: A record of a file or a data set.
        format: ``auto`` or a key of ``FORMATS``.
        columns: Canonical column name → name of that column in the record.

    Raises:
        InputError: The record cannot be converted; the error names the file, the line and the field.
    """
    if record.fault:
        raise record.fault
    try:
        fields = _fields(record, format, columns)
        name = _detect(fields) if format == "auto" else format
        row = FORMATS[name].read(fields, record.origin)
    except BadRow as bad:
        absent = [name for name in columns.values() if isinstance(record.value, dict) and name not in record.value]
        why = bad.why + "".join(f"; there is no column {name!r} as data.columns says" for name in absent)
        raise InputError(record.origin, why, bad.instead or MEND) from bad
    # A format pops what it reads.
    return replace(row, unread=tuple(name for name, value in fields.items() if value not in (None, "", [], {})))


def _fields(record: Record, format: str, columns: Mapping[str, str]) -> dict[str, Any]:
    value = record.value
    if isinstance(value, str) and format == "text":
        value = {"text": value}
    if is_dialogue(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        instead = "Type data.format=text if each bare text is a document" if isinstance(value, str) else None
        raise BadRow(f"the row is {type_name(value)} where an object with named columns is needed", instead)
    if record.repeated:
        raise BadRow(f"field {record.repeated[0]!r} appears twice in one object")
    theirs = set(columns.values())
    fields = {key: item for key, item in value.items() if key not in theirs}
    fields |= {ours: value[name] for ours, name in columns.items() if name in value}
    fields = without_filled_nulls(fields) if record.from_table else fields
    if media := [name for name in MEDIA if fields.get(name)]:
        raise BadRow(f"field {media[0]!r} is filled, and only text can be trained on")
    return fields


def _detect(fields: Mapping[str, Any]) -> str:
    known_fields = {key: value for key, value in fields.items() if value is not None}
    for candidate in (known_fields, fields):
        for name, format in FORMATS.items():
            if format.fits(candidate):
                return name
    known = ("prompt", "completion", "question", "answer", "instruction", "output", "messages", "text", "chosen")
    alike = {name: key for key in fields for name in known if key.strip().lower() == name}
    renamed = ", ".join(f"{ours}: {theirs!r}" for ours, theirs in (alike or {"prompt": "A", "completion": "B"}).items())
    shown = ", ".join(map(repr, list(fields)[:8])) or "none at all"
    raise BadRow(f"no format fits its columns ({shown})", f"Name the columns to read, e.g. data.columns={{{renamed}}}")
