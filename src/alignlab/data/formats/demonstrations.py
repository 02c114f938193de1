"""Formats of dialogues and of single completions: Text, Demonstration and Prompt rows.

A demonstration must begin with a prompt, end with an assistant message, and have at least one assistant message in the
loss. The ``answer`` of ``question``/``answer`` is also kept as a column, because rewards compare with it.
"""

from typing import Any

from alignlab.data.formats.fields import BadRow, filled_text, pop, pop_tools
from alignlab.data.formats.messages import Dialogue, as_turns, check_order
from alignlab.data.formats.prompts import pop_dialogue, pop_prompt
from alignlab.types.rows import Demonstration, Prompt, Text

KEPT = ("answer",)


def text(record: dict[str, Any], origin: str) -> Text:
    """``text``: one document."""
    return Text(text=filled_text(pop(record, "text"), "text"), origin=origin, columns=record)


def dialogue(record: dict[str, Any], origin: str) -> Demonstration:
    """``messages``, ``conversations`` or a bare list of messages."""
    return _demonstration(pop_dialogue(record), "messages", record, origin)


def completion(record: dict[str, Any], origin: str, *, prompt: str, completion: str) -> Demonstration:
    """A prompt and its completion, read from two given fields."""
    before = pop_prompt(record, prompt)
    after = pop(record, completion)
    kept = {completion: after} if completion in KEPT else {}
    turns = as_turns(after, completion, "assistant")
    return _demonstration(before + turns, completion, record, origin, **kept)


def prompt(record: dict[str, Any], origin: str) -> Prompt:
    """A prompt alone, under ``prompt`` or another usual name; all other fields are kept as columns."""
    before = pop_prompt(record)
    check_order(before, "prompt")
    if before[-1]["role"] not in ("user", "tool"):
        raise BadRow(f"field 'prompt' ends with role {before[-1]['role']!r}, not with a user or tool message")
    return Prompt(prompt=tuple(before), tools=pop_tools(record), origin=origin, columns=record)


def _demonstration(messages: Dialogue, field: str, record: dict[str, Any], origin: str, **kept) -> Demonstration:
    check_order(messages, field)
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"field {field!r} ends with role {messages[-1]['role']!r}, not with an assistant message")
    if not any(message.get("supervised", True) for message in messages if message["role"] == "assistant"):
        raise BadRow(f"field {field!r} has no assistant message in the loss")
    tools = pop_tools(record)
    return Demonstration(messages=tuple(messages), tools=tools, origin=origin, columns=record | kept)
