"""An assistant turn as two texts: what generation sees before it, and what generation must say.

The context is the dialogue before the turn with the opening of an assistant turn. The answer is the rest of the
dialogue that ends with the turn, up to the token on which generation stops. Both are found by rendering, without a
knowledge of the template's markers. Templates may write a turn in another way once the dialogue goes on (without its
reasoning, with another end token), so every turn is rendered as the last one.

The dialogue that ends with the turn may begin otherwise than the context:

| difference | for example | answer |
|---|---|---|
| blanks at the end of the context | Nemotron breaks the line after ``<think>`` | what follows the opening |
| an opened thought is missing | DeepSeek-R1 never writes reasoning | reasoning, its end, what follows |
| earlier turns lose their reasoning | gpt-oss, once an answer follows a call | what follows the same opening |

An answer of a template that writes no token after it (GLM) ends with the token that begins the next message.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from alignlab.data.tokenise.dialogue import Dialogue, squeeze
from alignlab.data.tokenise.kept import find_lost
from alignlab.types.rows import Message

_OPENED_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>$")
_CLOSED_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>\s*")


class Turn(NamedTuple):
    """A supervised turn.

    Args:
        context: What generation sees before it.
        answer: What generation must say, with the end token.
        given: Number of characters at the beginning of the answer that are not supervised.
    """

    context: str
    answer: str
    given: int = 0


def find_turn(dialogue: Dialogue, number: int) -> Turn:
    """Find the texts of a turn.

    Args:
        dialogue: A rendered dialogue.
        number: Number of an assistant message.

    Raises:
        InputError: The context is not the beginning of the dialogue in one of the known ways.
    """
    message = dialogue.messages[number]
    context = dialogue.render(number, add_generation_prompt=True)
    through = _through(dialogue, number)
    answer = _answer(context, through, message)
    if answer is None:
        differs = _difference(context, through)
        raise dialogue.misfit(f"the generation prompt differs from the dialogue before an assistant turn ({differs})")
    supervises_reasoning = dialogue.context.settings.loss_on_reasoning
    return Turn(context, answer, 0 if supervises_reasoning else _end_of_reasoning(dialogue, message, answer))


PREFIX_END = "0PrefixEnd0"
"""What stands after a prefix while its end is found."""


def open_answer(dialogue: Dialogue, number: int) -> str:
    """What generation sees of an answer of which the prefix is given: the context of the turn, and the prefix.

    It is what the template renders before the first character after the prefix, as with ``continue_final_message`` of
    Transformers; blanks at the end of the prefix stay.

    Args:
        dialogue: A rendered dialogue.
        number: Number of a message with a ``prefix``.

    Raises:
        InputError: The template does not render the prefix.
    """
    message = {key: value for key, value in dialogue.messages[number].items() if key != "tool_calls"}
    message["content"] = message["prefix"] + PREFIX_END
    turn = find_turn(dialogue.with_messages([*dialogue.messages[:number], message], dialogue.tools), number)
    before, found, _ = turn.answer.partition(PREFIX_END)
    if not found or not before.endswith(message["prefix"].lstrip()):
        raise dialogue.loss(f"the prefix of an answer: {message['prefix'][:40]!r}")
    return turn.context + before


def after_prefix(dialogue: Dialogue, number: int, turn: Turn) -> Turn:
    """The part of a turn after its prefix, which becomes part of the context.

    Args:
        dialogue: A rendered dialogue.
        number: Number of the message.
        turn: Its texts.

    Raises:
        InputError: The template writes the prefix in another way if more follows.
    """
    if "prefix" not in dialogue.messages[number]:
        return turn
    opened, whole = open_answer(dialogue, number), turn.context + turn.answer
    if not whole.startswith(opened):
        raise dialogue.misfit(f"an answer differs from its prefix ({_difference(opened, whole)})")
    given = max(0, turn.given - len(opened) + len(turn.context))
    return Turn(opened, whole[len(opened) :], given)


def _through(dialogue: Dialogue, number: int) -> str:
    """The dialogue that ends with a turn, up to the token that ends it."""
    ends, text = dialogue.context.ends, dialogue.render(number + 1).rstrip()
    return ends.cut(text) + (ends.after_call if dialogue.messages[number].get("tool_calls") else ends.after_text)


def _answer(context: str, through: str, message: Message) -> str | None:
    """What follows the context in the dialogue; None if the two differ in an unknown way."""
    if through.startswith(context):
        return through[len(context) :]
    opened = context.rstrip()
    if through.startswith(opened):
        return through[len(opened) :]
    if tag := _OPENED_THOUGHT.search(opened):
        base = opened[: tag.start()]
        return _thought(message, tag[1]) + through[len(base) :] if through.startswith(base) else None
    answer = _after_same_end(context, through)
    texts = [squeeze(text) for text in required_texts(message)]
    return answer if answer and all(text in squeeze(answer) for text in texts) else None


def _thought(message: Message, name: str) -> str:
    """The reasoning of a message up to its end, after the context opened it; empty reasoning if there is none."""
    content, closing = message.get("content") or "", f"</{name}>"
    if closing in content:  # The template leaves out what stands before it.
        return content.rpartition(closing)[0].removeprefix(f"<{name}>").lstrip("\n") + closing
    reasoning = message.get("reasoning_content") or ""
    return f"{reasoning}\n{closing}\n\n"


def _after_same_end(context: str, through: str) -> str | None:
    """What follows the longest end of the context that occurs in the dialogue, at least its last line or message."""
    low, high = 0, min(len(context), len(through))
    while low < high:  # Every end of an end that occurs, occurs too.
        middle = (low + high + 1) // 2
        low, high = (middle, high) if context[-middle:] in through else (low, middle - 1)
    if low < MIN_SHARED_END:
        return None
    return through[through.rindex(context[-low:]) + low :]


MIN_SHARED_END = 16
"""Least number of characters that the end of a context must share with a dialogue whose earlier turns differ."""


def required_texts(message: Message) -> Sequence[str]:
    """Texts of an assistant message that its answer must contain.

    Args:
        message: The message.
    """
    texts = [message[field] for field in ("content", "reasoning_content") if message.get(field)]
    return [*texts, *((call.get("function") or call)["name"] for call in message.get("tool_calls") or [])]


def _end_of_reasoning(dialogue: Dialogue, message: Message, answer: str) -> int:
    """Number of characters of an answer up to the end of its reasoning, or of an empty block that is inserted."""
    content, reasoning = (message.get("content") or "").strip(), message.get("reasoning_content") or ""
    before = answer.rfind(content) if content and not _CLOSED_THOUGHT.search(content) else len(answer)
    ends = [match.end() for match in _CLOSED_THOUGHT.finditer(answer, 0, before)]
    if reasoning and not ends and (found := answer.find(reasoning.strip())) >= 0:
        ends = [dialogue.context.ends.skip(answer, found + len(reasoning.strip()))]
    return max(ends, default=0)


def _difference(text: str, other: str) -> str:
    """Both texts from the first character that differs."""
    shared = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return f"{text[shared : shared + 24]!r} against {other[shared : shared + 24]!r}"


def check_answer(dialogue: Dialogue, number: int, turn: Turn) -> None:
    """Check that an answer holds all texts of its message.

    Args:
        dialogue: The dialogue of the message.
        number: Number of the message.
        turn: Its texts.

    Raises:
        InputError: The template leaves out one of them.
    """
    opened = _OPENED_THOUGHT.search(turn.context.rstrip())
    answer = squeeze((opened[0] if opened else "") + turn.answer)
    for part in required_texts(dialogue.messages[number]):
        if squeeze(part) not in answer:
            raise dialogue.loss(f"a part of an answer: {part[:40]!r}")


def check_contents(dialogue: Dialogue) -> None:
    """Check that the template renders the content of every system and user message, tools, calls, and reasoning.

    Blanks are ignored. The contents of assistant turns are checked where they are supervised.

    Args:
        dialogue: A rendered dialogue.

    Raises:
        InputError: The template leaves out one of them.
    """
    squeezed = squeeze(dialogue.text)
    for message in dialogue.messages:
        given = message["role"] not in ("assistant", "tool")
        if given and squeeze(message.get("content") or "") not in squeezed:
            raise dialogue.loss(f"the content of a message of role '{message['role']}'")

    def answer(messages: Sequence[Message], tools: Sequence[Any] | None) -> str:
        return find_turn(dialogue.with_messages(messages, tools), len(messages) - 1).answer

    if lost := find_lost(dialogue.messages, dialogue.tools, lambda *of: dialogue.with_messages(*of).text, answer):
        raise dialogue.loss(lost)
