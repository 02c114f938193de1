"""How a template reads messages: names of fields and forms of values, in which templates differ.

| field | forms |
|---|---|
| reasoning | ``reasoning_content`` · ``reasoning`` · ``thinking`` |
| content | a text · a list of parts (templates of multimodal models) |
| content of a turn that only calls tools | empty text · None (DeepSeek) |
| arguments of a call | an object · its JSON text (DeepSeek) |
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from alignlab.rendering import TooMuch
from alignlab.types.rows import Message

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

LOSS_KEYS = ("supervised", "weight", "prefix")
"""Fields of a message that are about the loss; templates do not see them."""

Render = Callable[[Sequence[Message]], str]
"""Renders messages as they are."""


@dataclass(frozen=True)
class Dialect:
    """The forms that a template reads.

    Args:
        reasoning: Name of the field of a message's reasoning.
        parts: Whether a content is a list of parts.
        empty_is_none: Whether the content of a turn that only calls tools must be None.
        arguments_are_text: Whether the arguments of a call must be JSON text.
    """

    reasoning: str = REASONING_FIELDS[0]
    parts: bool = False
    empty_is_none: bool = False
    arguments_are_text: bool = False

    def write(self, message: Message) -> dict[str, Any]:
        """Write a message in these forms; values of None are left out.

        Args:
            message: A message with ``reasoning_content``, a content of text and arguments that are objects.
        """
        written = {key: value for key, value in message.items() if key not in LOSS_KEYS and value is not None}
        if "reasoning_content" in written:
            written[self.reasoning] = written.pop("reasoning_content")
        content = written.get("content") or ""
        if self.empty_is_none and written.get("tool_calls") and not content:
            written["content"] = None
        elif self.parts and isinstance(content, str):
            written["content"] = [{"type": "text", "text": content}]
        else:
            written["content"] = content
        if self.arguments_are_text and written.get("tool_calls"):
            written["tool_calls"] = [_with_text(call) for call in written["tool_calls"]]
        return written


def find_dialect(template: str, render: Render) -> Dialect:
    """Find the forms that a template reads, from its text and by rendering short dialogues.

    Args:
        template: The Jinja text.
        render: Renders messages with it.

    Raises:
        TooMuch: Rendering takes too much time or memory.
    """
    reasoning = next((name for name in REASONING_FIELDS if re.search(rf"[.'\"]{name}\b", template)), "")
    plain = Dialect(reasoning or REASONING_FIELDS[0])
    as_parts = replace(plain, parts=True)
    messages = [{"role": "user", "content": "question"}]
    dialect = as_parts if not _writes(render, plain, messages) and _writes(render, as_parts, messages) else plain
    call = {"id": "000000000", "type": "function", "function": {"name": "f", "arguments": {"question": "0"}}}
    messages = [messages[0], {"role": "assistant", "tool_calls": [call]}]
    asks_for_none = bool(re.search(r"\bcontent['\"\]]*\s+is\s+(not\s+)?none", template))  # reasoning_content is another
    forms = [
        replace(dialect, empty_is_none=is_none, arguments_are_text=are_text)
        for is_none in dict.fromkeys((asks_for_none, False))
        for are_text in (False, True)
    ]
    times = 2 if "arguments" in template else 1
    return next((form for form in forms if _writes(render, form, messages, times)), dialect)


def _writes(render: Render, dialect: Dialect, messages: Sequence[Message], times: int = 1) -> bool:
    """Whether a template writes the word of these messages, and so often."""
    try:
        return render([dialect.write(message) for message in messages]).count("question") >= times
    except TooMuch:  # it would take as much again in every other form
        raise
    except TemplateError:
        return False


def _with_text(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function") or call
    if not isinstance(function.get("arguments"), dict):
        return call
    written = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "function": written} if call.get("function") else written
