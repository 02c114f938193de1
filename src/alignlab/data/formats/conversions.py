"""Conversions between kinds of rows, limited to those that keep everything the method needs."""

from collections.abc import Sequence
from dataclasses import fields, replace

from alignlab.data.formats.messages import opening, split
from alignlab.data.sources.files.record import MEND
from alignlab.data.unread import hints
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Encoded, Message, Preference, Prompt, Row, Text, Unpaired, WholeText


def _chosen_dialogue(row: Preference) -> Demonstration:
    messages = (*row.prompt, *row.chosen)
    return Demonstration(messages=messages, tools=row.tools, origin=row.origin, columns=row.columns)


def _prompt_of(row: Preference | Unpaired) -> Prompt:
    completion = row.chosen if isinstance(row, Preference) else row.completion
    return Prompt(prompt=(*row.prompt, *opening(completion)), tools=row.tools, origin=row.origin, columns=row.columns)


def _prompt_of_dialogue(row: Demonstration) -> Prompt:
    """Keep everything up to the last user message, and the prefix of the answer.

    The last answer becomes the column ``completion``, for rewards.
    """
    prompt, completion = split(list(row.messages))
    columns = {"completion": completion[-1]["content"]} | row.columns
    return Prompt(prompt=(*prompt, *opening(completion)), tools=row.tools, origin=row.origin, columns=columns)


def _plain_text(row: Demonstration) -> Text:
    if any("weight" in message for message in row.messages):
        raise InputError(row.origin, "a message has a weight of its own, and documents have none", MEND)
    text = "\n\n".join(message["content"] for message in row.messages if message["content"])
    return Text(text=text, origin=row.origin, columns=row.columns)


def _whole_text(row: Text) -> WholeText:
    return WholeText(text=row.text, origin=row.origin, columns=row.columns)


def _sequence(row: Encoded) -> Encoded:
    if len(row.completions) > 1:
        raise InputError(row.origin, "it holds a comparison of tokens, and the method needs one completion", MEND)
    return row


def _comparison(row: Encoded) -> Encoded:
    if len(row.completions) < 2:
        raise InputError(row.origin, "it holds one completion of tokens, and the method compares several", MEND)
    return row


CONVERSIONS = {
    (Text, Demonstration): _whole_text,
    (Encoded, Demonstration): _sequence,
    (Encoded, Preference): _comparison,
    (Preference, Demonstration): _chosen_dialogue,
    (Preference, Prompt): _prompt_of,
    (Unpaired, Prompt): _prompt_of,
    (Demonstration, Prompt): _prompt_of_dialogue,
    (Demonstration, Text): _plain_text,
}


def prepend(row: Row, messages: Sequence[Message]) -> Row:
    """Put messages before the dialogue or the prompt of a row.

    Args:
        row: A row of messages.
        messages: Messages to prepend, such as a system message or worked examples.

    Raises:
        InputError: The row is plain text.
    """
    field = "messages" if isinstance(row, Demonstration) else "prompt"
    if not hasattr(row, field):
        raise InputError("data.prepend", f"{row.origin} has no messages, but text or tokens", "Leave data.prepend out")
    return replace(row, **{field: (*messages, *getattr(row, field))})


def converts(row: Row, kind: type[Row]) -> bool:
    """Whether a row is of a kind, or can be converted to it."""
    return isinstance(row, kind) or (type(row), kind) in CONVERSIONS


def convert(row: Row, kind: type[Row]) -> Row:
    """Convert a row to the kind that a method trains on.

    Args:
        row: A row of any kind.
        kind: ``Text``, ``Demonstration``, ``Preference``, ``Unpaired`` or ``Prompt``.

    Raises:
        InputError: There is no such conversion; the error says what the row holds and what it can be converted to.
    """
    if isinstance(row, kind):
        return row
    if (type(row), kind) in CONVERSIONS:
        return replace(CONVERSIONS[type(row), kind](row), unread=row.unread)
    possible = [type(row), *(to for source, to in CONVERSIONS if source is type(row))]
    why = f"the method needs {_describe(kind)}, and the row is {_describe(type(row))}"
    instead = f"Choose a method that trains on {' or '.join(one.__name__ for one in possible)} rows, or other data"
    if kind is Unpaired and "label" in row.columns:
        instead = "Type data.format=unpaired to read its column 'label' as desirable or not"
    instead = ". ".join([instead, *hints(row.unread, kind)])
    raise InputError(row.origin, why, instead)


def _describe(kind: type[Row]) -> str:
    own = {field.name for field in fields(kind)} - {"origin", "columns", "unread", "tools", "scores"}
    return f"a {kind.__name__} ({', '.join(sorted(own))})"
