"""Chat messages: convert every dialect to ``{"role", "content"}``, and check the order of the roles.

| in the record | becomes |
|---|---|
| ``role``/``content`` or ``from``/``value``, also mixed | ``role``/``content`` |
| roles human, gpt, developer, observation, …, in upper or lower case | system, user, assistant, tool |
| ``{"human": …, "assistant": …}`` as one list entry | a user and an assistant message |
| content parts of type text | their texts joined |
| parts of type reasoning; ``reasoning_content``, ``reasoning`` or ``thinking`` | ``reasoning_content`` |
| function_call messages or keys, tool_call parts, ``tool_calls`` | ``tool_calls``, their arguments as objects |
| ``loss_weight``, ``weight``, ``loss``: 0 or false on an assistant message | ``supervised: False`` |
| the same with another number above 0 but 1 | ``weight`` |
| ``prefix: true`` on a last assistant message, which the model continues | ``prefix``, its content |
| further keys | kept; keys that are null are left out |
| ``prefix`` on another message, or with tool calls | refused |
| negative loss weights; loss on messages that are not the assistant's; parts that are not text | refused |
| empty user messages; empty assistant messages without tool calls; a content that is not a text | refused |
| empty system and tool messages | kept |

Order: an optional system message, then user and assistant alternately; tool messages only after an assistant message
with tool calls. A second system message, two users or two assistants in a row, and an assistant at the start are
refused.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.data.formats.fields import BadRow, filled_text, from_json_text, is_finite, type_name

Dialogue = list[dict[str, Any]]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
CALLS = ("function_call", "tool_call")
REASONING = ("reasoning", "thinking")
LOSS_FLAGS = ("supervised", "loss_weight", "weight", "loss")
FOLLOWS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def as_turns(value: Any, field: str, role: str) -> Dialogue:
    """Read a text (one message of the given role), a message, or a list of messages.

    Raises:
        BadRow: It is none of these, or empty.
    """
    if isinstance(value, dict):
        return [_message(value, field)]
    if isinstance(value, list):
        return as_messages(value, field)
    return [{"role": role, "content": filled_text(value, field)}]


def as_messages(value: Any, field: str) -> Dialogue:
    """Read a list of messages (or its JSON text).

    Raises:
        BadRow: It is not a list, it is empty, or a message in it cannot be read.
    """
    value = from_json_text(value, field)
    if not isinstance(value, list):
        raise BadRow(f"field {field!r} is {type_name(value)} where a list of messages is needed")
    if not value:
        raise BadRow(f"field {field!r} is an empty list")
    entries = [(entry, f"{field}[{index}]") for index, entry in enumerate(value)]
    return [message for entry, entry_field in entries for message in _entry(entry, entry_field)]


def _entry(entry: Any, field: str) -> Dialogue:
    if isinstance(entry, dict) and {"human", "assistant"} <= entry.keys():
        pair = {"user": entry["human"], "assistant": entry["assistant"]}
        return [{"role": role, "content": filled_text(text, f"{field}.{role}")} for role, text in pair.items()]
    return [_message(entry, field)]


def _message(raw: Any, field: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise BadRow(f"field {field!r} is {type_name(raw)} where a message with role and content is needed")
    message = {key: value for key, value in raw.items() if value is not None}
    named = _role(message, field)
    role = ROLES[named]
    content = _take(message, ("content", "value"), raw, field, optional=bool(message.keys() & {"tool_calls", *CALLS}))
    text, reasoning, calls = _parts(content, f"{field}.content")
    if named in CALLS:
        text, calls = "", _as_list(_parsed(text, f"{field}.content"))
    calls += _as_list(message.pop("tool_calls", [])) + _as_list(message.pop("function_call", []))
    weight, opened = _weight(message, role, field), _opened(message, role, field)
    if not (text.strip() or calls or role in ("system", "tool")):
        raise BadRow(f"field '{field}.content' is empty")
    reasoning = _reasoning(message, reasoning, field)
    normal = {"role": role, "content": text} | message
    normal |= {"reasoning_content": reasoning} if reasoning else {}
    normal |= {"prefix": text} if opened else {}
    normal |= {"tool_calls": [_call(call, f"{field}.tool_calls") for call in calls]} if calls else {}
    return normal | ({} if weight == 1 else {"weight": weight} if weight else {"supervised": False})


def _role(message: dict[str, Any], field: str) -> str:
    role = _take(message, ("role", "from"), message, field)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise BadRow(f"field '{field}.role' is {role!r}", f"Roles are {', '.join(ROLES)}")
    return role.lower()


def _take(message: dict[str, Any], keys: Sequence[str], raw: Mapping[str, Any], field: str, optional=False) -> Any:
    for key in keys:
        if key in message:
            return message.pop(key)
    if optional:
        return ""
    raise BadRow(f"field '{field}.{keys[0]}' is {'null' if keys[0] in raw or keys[1] in raw else 'missing'}")


def _parts(content: Any, field: str) -> tuple[str, str, list[Any]]:
    """Read the text, reasoning and tool calls of a content, which is a text or a list of typed parts."""
    if isinstance(content, str):
        return content, "", []
    if not isinstance(content, list):
        raise BadRow(f"field {field!r} is {type_name(content)} where a text or a list of parts is needed")
    texts: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type_name(part)
        kind = "reasoning" if kind in REASONING else "tool_call" if kind in CALLS else kind
        if not isinstance(kind, str) or kind not in texts:
            raise BadRow(f"field '{field}[{index}]' is of type {kind!r}, and only text can be trained on")
        value = next((part[key] for key in ("text", "value", *REASONING) if key in part), None)
        if not isinstance(value, str):
            raise BadRow(f"field '{field}[{index}]' is a {kind} part whose value is {type_name(value)}")
        texts[kind].append(value)
    calls = [call for text in texts["tool_call"] for call in _as_list(_parsed(text, field))]
    return "".join(texts["text"]), "".join(texts["reasoning"]), calls


def _reasoning(message: dict[str, Any], from_parts: str, field: str) -> str:
    """Pop the reasoning of a message, under any of its names.

    Raises:
        BadRow: It is not a text, or two names hold different texts.
    """
    names = ("reasoning_content", *REASONING)
    # A truth value is no reasoning, but a switch such as ``thinking: true``, which is kept for the template.
    given = {name: message.pop(name) for name in names if not isinstance(message.get(name, True), bool)}
    for name, value in given.items():
        if not isinstance(value, str):
            raise BadRow(f"field '{field}.{name}' is {type_name(value)} where a text is needed")
    texts = {text for text in (from_parts, *given.values()) if text}
    if len(texts) > 1:
        raise BadRow(f"field {field!r} holds two different texts of reasoning")
    return next(iter(texts), "")


def _parsed(text: str, field: str) -> Any:
    value = from_json_text(text, field)
    if isinstance(value, str):
        raise BadRow(f"field {field!r} is a tool call that is not a JSON object")
    return value


def _as_list(value: Any) -> list[Any]:
    value = from_json_text(value, "tool_calls")
    return value if isinstance(value, list) else [value]


def _call(call: Any, field: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"field {field!r} holds a call without a name")
    arguments = from_json_text(function.get("arguments") or {}, f"{field}.arguments")
    if not isinstance(arguments, dict):
        raise BadRow(f"field '{field}.arguments' is {type_name(arguments)} where an object is needed")
    rest = {key: value for key, value in call.items() if key in ("id", "type")}
    return {"type": "function"} | rest | {"function": {"name": function["name"], "arguments": arguments}}


def _opened(message: dict[str, Any], role: str, field: str) -> bool:
    """Pop whether a message is the beginning of an answer, which the model continues."""
    value = message.pop("prefix", False)
    if not isinstance(value, bool):
        raise BadRow(f"field '{field}.prefix' is {type_name(value)} where true or false is needed")
    if value and role != "assistant":
        raise BadRow(f"field '{field}.prefix': only a message of the assistant can be continued")
    return value


def is_opened(dialogue: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a dialogue ends in a message that the model continues."""
    return bool(dialogue) and dialogue[-1].get("prefix", None) == dialogue[-1]["content"]


def split_opened(prompt: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """The messages of a prompt before the answer that it opens, and the text of that; empty text if it opens none."""
    return (list(prompt[:-1]), prompt[-1]["content"]) if is_opened(prompt) else (list(prompt), "")


def continued(prompt: Dialogue, completion: Dialogue, field: str) -> Dialogue:
    """A prompt and its completion as one dialogue; a last message that is to be continued becomes one with the first.

    Args:
        prompt: Messages before the completion.
        completion: At least one message.
        field: Name of the completion in the error.

    Raises:
        BadRow: The prompt ends in an opened answer, and the completion cannot continue it.
    """
    if not is_opened(prompt):
        return prompt + completion
    (*before, opened), (first, *others) = prompt, completion
    if first["role"] != "assistant" or first.get("reasoning_content") or not first["content"]:
        raise BadRow(f"field {field!r} cannot continue the opened answer: it needs a text of the assistant")
    return [*before, opened | first | {"content": opened["content"] + first["content"]}, *others]


def opening(completion: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The opened answer with which a completion begins, as the end of a prompt; empty if it begins with none.

    Args:
        completion: At least one message.
    """
    first = completion[0]
    if "prefix" not in first:
        return ()
    kept = {key: first[key] for key in ("role", "reasoning_content", "prefix") if key in first}
    return (kept | {"content": first["prefix"]},)


def _weight(message: dict[str, Any], role: str, field: str) -> float:
    """Pop the weight of a message in the loss, under any of its names; 1 for messages without."""
    flags = {key: message.pop(key) for key in LOSS_FLAGS if key in message}
    for key, value in flags.items():
        if not isinstance(value, int | float) or not is_finite(value) or value < 0:
            raise BadRow(f"field '{field}.{key}' is {value!r}; a message is in the loss (1), not (0), or by a weight")
        if value and role != "assistant":
            raise BadRow(
                f"field '{field}.{key}' puts a message of role {role!r} into the loss", "Type data.loss_on=all"
            )
    return math.prod(map(float, flags.values())) if role == "assistant" else 1.0


def check_order(dialogue: Dialogue, field: str) -> None:
    """Check that roles follow each other in a valid order.

    Args:
        dialogue: Messages as ``as_messages`` returns them.
        field: Name of the field in the error.

    Raises:
        BadRow: A message follows one that it cannot follow.
    """
    before, calls = "start", False
    for index, message in enumerate(dialogue):
        role = message["role"]
        if role not in FOLLOWS[before]:
            position = "come first" if before == "start" else f"follow {before!r}"
            raise BadRow(f"field '{field}[{index}].role': {role!r} cannot {position}")
        if "prefix" in message and is_opened([message]) and index < len(dialogue) - 1:
            raise BadRow(f"field '{field}[{index}].prefix': only the last message can be continued")
        if "prefix" in message and message.get("tool_calls") and is_opened([message]):
            raise BadRow(f"field '{field}[{index}].prefix': a message with tool calls cannot be continued")
        if role == "tool" and before == "assistant" and not calls:
            raise BadRow(f"field '{field}[{index}].role': 'tool' follows an assistant message without tool calls")
        before, calls = role, bool(message.get("tool_calls"))


def split(dialogue: Dialogue) -> tuple[Dialogue, Dialogue]:
    """Split a dialogue after its last user message into a prompt and a completion.

    Args:
        dialogue: Messages in a valid order.
    """
    last = max((index for index, message in enumerate(dialogue) if message["role"] == "user"), default=-1)
    return dialogue[: last + 1], dialogue[last + 1 :]
