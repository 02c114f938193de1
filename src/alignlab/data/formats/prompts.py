"""Prompts: system text, history, a prompt or a whole dialogue, under the field names that data sets use.

| field | becomes |
|---|---|
| ``prompt``, ``question``, ``query``, ``input``: a text | a user message |
| ``prompt``: a list of messages | these messages |
| ``instruction`` and, where it is filled, ``input`` | one user message: joined by a line break, or Alpaca's prompt |
| ``messages``, ``conversations``, ``conversation`` | a dialogue |
| ``system`` | a system message at the start; null or empty means none |
| ``history``: pairs of user and assistant texts | messages before the prompt; null or empty means none |
"""

from typing import Any

from alignlab.data.formats.fields import (
    BadRow,
    filled,
    filled_text,
    from_json_text,
    pop,
    pop_optional_text,
    type_name,
)
from alignlab.data.formats.messages import Dialogue, as_messages, as_turns

DIALOGUES = ("messages", "conversations", "conversation")
QUESTIONS = ("instruction", "prompt", "question", "query", "input")

_REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    + _REQUEST
    + "### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = "Below is an instruction that describes a task. " + _REQUEST + "### Response:"
"""The prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, ``train.py``)."""


def pop_dialogue(record: dict[str, Any]) -> Dialogue:
    """Pop the dialogue of a record, with its system text as the first message.

    Raises:
        BadRow: There is none, there are two, or it cannot be read.
    """
    names = filled(record, DIALOGUES) or [name for name in DIALOGUES if name in record]
    if len(names) > 1:
        instead = f"Name the one to read: data.columns={{messages: {names[0]}}} after removing the other"
        raise BadRow(f"fields {' and '.join(map(repr, names))} both hold a dialogue", instead)
    name = names[0] if names else "messages"
    return with_system(record, as_messages(pop(record, name), name))


def pop_prompt(record: dict[str, Any], name: str | None = None) -> Dialogue:
    """Pop the prompt of a record, with system text and history before it.

    Args:
        record: The record; all fields that belong to the prompt are popped.
        name: Field of the prompt; None for the first usual name that the record has.

    Raises:
        BadRow: There is none, or it cannot be read.
    """
    if name is None and filled(record, DIALOGUES):
        return pop_dialogue(record)
    name = name or next(iter(filled(record, QUESTIONS)), "prompt")
    value = _instruction(record) if name == "instruction" else pop(record, name)
    return with_system(record, _history(record) + as_turns(value, name, "user"))


def with_system(record: dict[str, Any], dialogue: Dialogue) -> Dialogue:
    """Put the record's system text, if it has one, before a dialogue.

    Raises:
        BadRow: The dialogue has another system message of its own.
    """
    text = pop_optional_text(record, "system")
    first = dialogue[0] if dialogue else {"role": None}
    if text is None or first == {"role": "system", "content": text}:
        return dialogue
    if first["role"] == "system":
        raise BadRow("field 'system' differs from the system message of the dialogue")
    return [{"role": "system", "content": text}, *dialogue]


def _instruction(record: dict[str, Any]) -> str:
    question = pop_optional_text(record, "input")
    instruction = pop(record, "instruction")
    if question is None:
        return filled_text(instruction, "instruction")
    return question if instruction == "" else f"{filled_text(instruction, 'instruction')}\n{question}"


def pop_alpaca_prompt(record: dict[str, Any]) -> str:
    """Pop ``instruction`` and ``input``, and write Alpaca's prompt with them.

    Raises:
        BadRow: The instruction is missing or empty, or one of them is not a text.
    """
    instruction, text = filled_text(pop(record, "instruction"), "instruction"), pop_optional_text(record, "input")
    if text is None:
        return ALPACA_WITHOUT_INPUT.format(instruction=instruction)
    return ALPACA_WITH_INPUT.format(instruction=instruction, input=text)


def _history(record: dict[str, Any]) -> Dialogue:
    pairs = from_json_text(record.pop("history", None), "history") or []
    if not isinstance(pairs, list):
        raise BadRow(f"field 'history' is {type_name(pairs)} where a list of pairs is needed")
    turns = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"field 'history[{index}]' is not a pair of a user and an assistant text")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append({"role": role, "content": filled_text(text, f"history[{index}]")})
    return turns
