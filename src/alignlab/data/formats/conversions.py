"""Conversions between kinds of rows: the few that lose nothing which the method could miss."""

from collections.abc import Sequence
from dataclasses import fields, replace

from alignlab.data.formats.messages import split
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Message, Preference, Prompt, Row, Text, Unpaired


def _chosen(row: Preference) -> Demonstration:
    messages = (*row.prompt, *row.chosen)
    return Demonstration(messages=messages, tools=row.tools, origin=row.origin, columns=row.columns)


def _asked(row: Preference | Unpaired) -> Prompt:
    return Prompt(prompt=row.prompt, tools=row.tools, origin=row.origin, columns=row.columns)


def _unanswered(row: Demonstration) -> Prompt:
    """Everything up to the last user message; the removed end stays as the column ``completion``, for rewards."""
    prompt, completion = split(list(row.messages))
    columns = {"completion": completion[-1]["content"]} | row.columns
    return Prompt(prompt=tuple(prompt), tools=row.tools, origin=row.origin, columns=columns)


def _written_out(row: Demonstration) -> Text:
    text = "\n\n".join(message["content"] for message in row.messages if message["content"])
    return Text(text=text, origin=row.origin, columns=row.columns)


CONVERSIONS = {
    (Preference, Demonstration): _chosen,
    (Preference, Prompt): _asked,
    (Unpaired, Prompt): _asked,
    (Demonstration, Prompt): _unanswered,
    (Demonstration, Text): _written_out,
}


def prepend(row: Row, messages: Sequence[Message]) -> Row:
    """The row with messages before its dialogue or prompt.

    Args:
        row: Any kind but text.
        messages: A system text, worked examples.

    Raises:
        InputError: The row is plain text.
    """
    field = "messages" if isinstance(row, Demonstration) else "prompt"
    if not hasattr(row, field):
        raise InputError("data.prepend", f"{row.origin} is plain text, which has no turns", "Leave it out")
    return replace(row, **{field: (*messages, *getattr(row, field))})


def converts(row: Row, kind: type[Row]) -> bool:
    """Whether a row is of a kind, or can be made one."""
    return isinstance(row, kind) or (type(row), kind) in CONVERSIONS


def convert(row: Row, kind: type[Row]) -> Row:
    """Make a row of the kind that a method row_kind.

    Args:
        row: Any row.
        kind: ``Text``, ``Demonstration``, ``Preference``, ``Unpaired`` or ``Prompt``.

    Raises:
        InputError: There is no such conversion; says what the row holds and what it can become.
    """
    if isinstance(row, kind):
        return row
    if (type(row), kind) in CONVERSIONS:
        return CONVERSIONS[type(row), kind](row)
    possible = [type(row), *(to for source, to in CONVERSIONS if source is type(row))]
    why = f"the method needs {_described(kind)}, and the row is {_described(type(row))}"
    instead = f"Take a method that eats {' or '.join(one.__name__ for one in possible)} rows, or other data"
    raise InputError(row.origin, why, instead)


def _described(kind: type[Row]) -> str:
    own = {field.name for field in fields(kind)} - {"origin", "columns", "tools", "scores"}
    return f"a {kind.__name__} ({', '.join(sorted(own))})"
