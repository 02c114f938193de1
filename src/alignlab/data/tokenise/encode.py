"""Encode text to token ids, such that the content of a row can never act as a special token.

A special-token string inside a content (``<|im_end|>`` in a user's text) is split by a guard character before the
template renders, and the text is cut at the guards before it is encoded: the string becomes ordinary text tokens, while
special tokens that the template writes stay special. Tokens that control nothing (those that the user added, those that
the tokenizer does not flag as special) are not changed: contents may use them.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignlab.types.rows import Message

REASONING = re.compile("think|thought|reason", re.IGNORECASE)
"""Tokens around reasoning, by name: a template may write them in every answer, and answers write them too."""

_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


@dataclass(frozen=True)
class Control:
    """Patterns of token strings that contents must not write; None where there are none.

    Args:
        special: All special tokens and stop tokens.
        contents: Those that the template writes, those with a name (``bos_token``, ``pad_token``), and stop tokens. The
            others, such as tokens that the user added, keep their ids in contents.
        answers: The same for what the assistant says. It may also use what the template writes only in some answers,
            such as the tokens around reasoning, but nothing that begins or ends a turn.
    """

    special: re.Pattern[str] | None
    contents: re.Pattern[str] | None
    answers: re.Pattern[str] | None


def control_patterns(
    tokenizer: PreTrainedTokenizerBase, stop: Collection[int], template: str, rendered: str | None
) -> Control:
    """Build the patterns of a tokenizer with its template.

    Args:
        tokenizer: The tokenizer, for its tokens flagged as special.
        stop: Ids of stop tokens, special or not.
        template: The Jinja text of the template.
        rendered: A plain dialogue as the template renders it; None if it refuses one.
    """
    added = tokenizer.added_tokens_decoder
    always = {*tokenizer.convert_ids_to_tokens(list(stop))}
    special = {token.content for token in added.values() if token.special} | {*tokenizer.all_special_tokens} | always
    always |= {token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
    written = {token for token in special if token in template}
    turns = {token for token in written if rendered is None or token in rendered}
    answers = always | {token for token in turns if not REASONING.search(token)}
    return Control(*map(one_of, (special | always, always | written, answers)))


def one_of(strings: Collection[str]) -> re.Pattern[str] | None:
    """A pattern of strings of at least two characters, the longest first; None if there are none.

    Args:
        strings: The strings.
    """
    longest_first = sorted((s for s in strings if len(s) > 1), key=lambda s: (-len(s), s))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def guard_dialogue(
    messages: Sequence[Message], tools: Sequence[Any] | None, control: Control
) -> tuple[list[dict[str, Any]], list[Any] | None, str | None]:
    """Insert a guard into each token string that a dialogue must not write.

    Args:
        messages: The turns.
        tools: Tool descriptions.
        control: The patterns.

    Returns:
        Messages and tools with the guard, and the guard; None if nothing needs it.
    """
    guard = find_guard([messages, tools], control.contents)
    return [_guarded(message, control, guard) for message in messages], protect(tools, control.contents, guard), guard


def _guarded(message: Message, control: Control, guard: str | None) -> dict[str, Any]:
    said = ("content", "reasoning_content", "prefix") if message["role"] == "assistant" else ()
    patterns = {key: control.answers if key in said else control.contents for key in message}
    return {key: protect(value, patterns[key], guard) for key, value in message.items()}


def find_guard(value: Any, pattern: re.Pattern[str] | None) -> str | None:
    """Choose a character that does not occur in the value; None if the value holds no special-token string.

    Args:
        value: Strings in lists and mappings, such as a dialogue and its tools.
        pattern: A pattern of ``Control``.
    """
    written = json.dumps(value, ensure_ascii=False, default=str)
    if pattern is None or not pattern.search(written):
        return None
    return next(character for character in _NONCHARACTERS if character not in written)


def protect(value: Any, pattern: re.Pattern[str] | None, guard: str | None) -> Any:
    """Insert the guard into each special-token string of a value.

    Args:
        value: Strings in lists and mappings.
        pattern: A pattern of ``Control``.
        guard: Character of ``find_guard``; None changes nothing.
    """
    if guard is None or pattern is None:
        return value
    if isinstance(value, str):
        return pattern.sub(lambda match: match[0][0] + guard + match[0][1:], value)
    if isinstance(value, dict):
        return {key: protect(item, pattern, guard) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [protect(item, pattern, guard) for item in value]
    return value


def encode(text: str, tokenizer: PreTrainedTokenizerBase, guard: str | None = None) -> list[int]:
    """Encode a text to token ids, without the special tokens that the tokenizer would add around it.

    Args:
        text: Rendered text; guards in it are removed.
        tokenizer: The tokenizer that encodes.
        guard: Character at which to cut the text, so that no special-token string stays complete.
    """
    first, *others = text.split(guard) if guard else [text]
    ids = tokenizer.encode(first, add_special_tokens=False, verbose=False)
    for piece in others:
        ids += encode_continuation(piece, tokenizer)
    return ids


def encode_continuation(text: str, tokenizer: PreTrainedTokenizerBase, guard: str | None = None) -> list[int]:
    """Encode a text that continues another, without the blank that some tokenizers put before a text.

    Args:
        text: The continuation.
        tokenizer: The tokenizer that encodes. If it marks the beginning of a text (SentencePiece's ▁), the mark falls
            on an anchor before the text, which is removed again.
        guard: As in ``encode``.
    """
    for anchor in ("\n", "x"):
        lead = encode(anchor, tokenizer)
        ids = encode(anchor + text, tokenizer, guard)
        if ids[: len(lead)] == lead:
            return ids[len(lead) :]
    return encode(text, tokenizer, guard)
