"""Formats of dialogues and of single completions: Text, Demonstration and Prompt rows.

A prompt may end in a message of the assistant with ``prefix: true``, which the model continues; a completion then
continues it too, and the prefix is not supervised. A demonstration must begin with a prompt, end with an assistant
message, and have at least one assistant message in the loss. The ``answer`` of ``question``/``answer`` is also kept as
a column, because rewards compare with it.
"""

from typing import Any

from alignlab.data.formats.fields import BadRow, filled_text, pop, pop_tools
from alignlab.data.formats.messages import Dialogue, as_turns, check_order, continued, is_opened
from alignlab.data.formats.prompts import pop_alpaca_prompt, pop_dialogue, pop_prompt
from alignlab.types.rows import Demonstration, Prompt, Text

KEPT = ("answer",)


def text(record: dict[str, Any], origin: str) -> Text:
    """``text``: one document."""
    return Text(text=filled_text(pop(record, "text"), "text"), origin=origin, columns=record)


def dialogue(record: dict[str, Any], origin: str) -> Demonstration | Prompt:
    """``messages``, ``conversations`` or a bare list of messages; a prompt if its last message is to be continued."""
    messages = pop_dialogue(record)
    if is_opened(messages):
        check_order(messages, "messages")
        return Prompt(prompt=tuple(messages), tools=pop_tools(record), origin=origin, columns=record)
    return _demonstration(messages, "messages", record, origin)


def completion(record: dict[str, Any], origin: str, *, prompt: str, completion: str) -> Demonstration:
    """A prompt and its completion, read from two given fields."""
    before = pop_prompt(record, prompt)
    after = pop(record, completion)
    kept = {completion: after} if completion in KEPT else {}
    turns = as_turns(after, completion, "assistant")
    return _demonstration(continued(before, turns, completion), completion, record, origin, **kept)


def alpaca_prompt(record: dict[str, Any], origin: str) -> Demonstration:
    """``instruction``, ``input`` and ``output``, with the first two in Alpaca's own prompt."""
    record["instruction"] = pop_alpaca_prompt(record)
    return completion(record, origin, prompt="instruction", completion="output")


def prompt(record: dict[str, Any], origin: str) -> Prompt:
    """A prompt alone, under ``prompt`` or another usual name; all other fields are kept as columns."""
    before = pop_prompt(record)
    check_order(before, "prompt")
    if before[-1]["role"] not in ("user", "tool") and not is_opened(before):
        why = f"field 'prompt' ends with role {before[-1]['role']!r}, not with a user or tool message"
        raise BadRow(why, 'Write "prefix": true in a last message of the assistant that the model continues')
    return Prompt(prompt=tuple(before), tools=pop_tools(record), origin=origin, columns=record)


def _demonstration(messages: Dialogue, field: str, record: dict[str, Any], origin: str, **kept) -> Demonstration:
    check_order(messages, field)
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"field {field!r} ends with role {messages[-1]['role']!r}, not with an assistant message")
    if not any(message.get("supervised", True) for message in messages if message["role"] == "assistant"):
        raise BadRow(f"field {field!r} has no assistant message in the loss")
    tools = pop_tools(record)
    return Demonstration(messages=tuple(messages), tools=tools, origin=origin, columns=record | kept)
