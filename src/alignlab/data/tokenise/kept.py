"""Find what a template leaves out of tool schemas, tool calls, tool results and reasoning.

A copy of the dialogue is rendered in which each of these values is a mark that occurs nowhere else. Marks consist of
letters and digits, so they stay whole in every notation (JSON, XML, a signature), and a value that stands elsewhere in
the dialogue by chance cannot hide that it was left out.

| part | must be rendered |
|---|---|
| a tool | its name and description; the names of all its parameters; of a parameter also its description and choices |
| a call | its name; all its arguments, with their names and values |
| a tool message | its content |
| reasoning | the text, in the answer of its turn: templates may leave it out later |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignlab.types.rows import Message

Render = Callable[[Sequence[Message], Sequence[Any] | None], str]
"""Renders messages and tools."""


class _Marks(dict[str, str]):
    """What each mark stands for, by mark.

    Args:
        kind: Beginning of each mark, in small letters.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def new(self, what: str) -> str:
        mark = f"{self.kind}{len(self):05d}end"
        self[mark] = what
        return mark


def find_lost(messages: Sequence[Message], tools: Sequence[Any] | None, render: Render, answer: Render) -> str | None:
    """Find the first value that a template leaves out, and describe it; None if it writes all.

    Args:
        messages: The turns.
        tools: Tool descriptions, if the row has any.
        render: Renders a dialogue with the template.
        answer: Renders the answer of the last message.

    Raises:
        jinja2.TemplateError: The template refuses the dialogue.
    """
    marks, reasoning = _Marks("mark"), _Marks("thought")
    marked_tools = [_tool(tool, marks) for tool in tools or ()]
    marked = [_message(message, marks, reasoning) for message in messages]
    turns = {mark: turn for mark in reasoning for turn, m in enumerate(marked) if m.get("reasoning_content") == mark}
    if not (marks or reasoning):
        return None
    text = render(marked, marked_tools).lower()
    for mark, what in marks.items():
        if mark not in text:
            return what
    for mark, turn in turns.items():
        if mark not in text and mark not in answer(marked[: turn + 1], marked_tools).lower():
            return reasoning[mark]
    return None


def _message(message: Message, marks: _Marks, reasoning: _Marks) -> Message:
    marked = dict(message)
    if message["role"] == "tool" and _filled(message.get("content")):
        marked["content"] = marks.new("the result of a tool")
    if _filled(message.get("reasoning_content")):
        marked["reasoning_content"] = reasoning.new("the reasoning of an assistant turn")
    if message.get("tool_calls"):
        marked["tool_calls"] = [_call(call, marks) for call in message["tool_calls"]]
    return marked


def _call(call: Mapping[str, Any], marks: _Marks) -> Mapping[str, Any]:
    function = call.get("function") or call
    what = f"a call of the tool {function['name']!r}"
    marked = {**function, "name": marks.new(what)}
    if isinstance(function.get("arguments"), dict):
        marked["arguments"] = _argument(function["arguments"], f"of {what}", marks)
    return {**call, "function": marked} if call.get("function") else marked


def _argument(value: Any, where: str, marks: _Marks) -> Any:
    """Mark names and values; null, truth values and numbers too, since templates write them in several ways."""
    if isinstance(value, dict):
        items = ((marks.new(f"the argument {key!r} {where}"), item) for key, item in value.items())
        return {key: _argument(item, where, marks) for key, item in items}
    if isinstance(value, list | tuple):
        return [_argument(item, where, marks) for item in value]
    return marks.new(f"the value {value!r} {where}") if value != "" else value


def _tool(tool: Any, marks: _Marks) -> Any:
    if not isinstance(tool, dict):
        return tool
    function = tool.get("function") if isinstance(tool.get("function"), dict) else tool
    what = f"the tool {function.get('name')!r}"
    marked = dict(function)
    if _filled(function.get("name")):
        marked["name"] = marks.new(what)
    if _filled(function.get("description")):
        marked["description"] = marks.new(f"the description of {what}")
    if "parameters" in function:
        marked["parameters"] = _schema(function["parameters"], what, marks, depth=0)
    return marked if function is tool else {**tool, "function": marked}


def _schema(value: Any, of: str, marks: _Marks, depth: int) -> Any:
    """Mark a schema: the names in it, and at depth 1, that of a parameter, its description and choices too.

    Descriptions of further levels are not marked, because notations such as TypeScript's have no place for them.
    """
    if isinstance(value, list):
        return [_schema(item, of, marks, depth) for item in value]
    if not isinstance(value, dict):
        return value
    properties = value.get("properties")
    names = {key: marks.new(f"the parameter {key!r} of {of}") for key in properties} if _is_object(properties) else {}
    marked = {key: _schema(item, of, marks, depth + 1) for key, item in value.items() if key != "properties"}
    if names:
        inside = {names[key]: _schema(item, f"{key!r} of {of}", marks, depth + 1) for key, item in properties.items()}
        marked["properties"] = inside
    if isinstance(value.get("required"), list):
        marked["required"] = [names.get(name, name) if isinstance(name, str) else name for name in value["required"]]
    if depth == 1 and _filled(value.get("description")):
        marked["description"] = marks.new(f"the description of {of}")
    if depth == 1 and isinstance(value.get("enum"), list):
        marked["enum"] = [
            marks.new(f"the choice {item!r} of {of}") if _filled(item) else item for item in value["enum"]
        ]
    return {key: marked.get(key, item) for key, item in value.items()}  # in the order of the row


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
