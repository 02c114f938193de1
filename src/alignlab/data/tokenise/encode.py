"""Encode text to token ids, such that the content of a row can never act as a special token.

A special-token string inside a content (``<|im_end|>`` in a user's text) is split by a guard character before the
template renders, and the text is cut at the guards before it is encoded: the string becomes ordinary text tokens, while
special tokens that the template writes stay special. Tokens that the tokenizer does not flag as special (``<think>``)
are not changed: contents may use them.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedTokenizerBase

_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


def control_pattern(tokenizer: PreTrainedTokenizerBase, stop: Collection[int]) -> re.Pattern[str] | None:
    """Build a pattern that matches the strings of special tokens and stop tokens; None if there are none.

    Args:
        tokenizer: The tokenizer, for its tokens flagged as special.
        stop: Ids of stop tokens, special or not.
    """
    added = tokenizer.added_tokens_decoder
    strings = {token.content for id_, token in added.items() if token.special or id_ in stop}
    strings |= {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(list(stop))}
    longest_first = sorted((s for s in strings if len(s) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def find_guard(value: Any, pattern: re.Pattern[str] | None) -> str | None:
    """Choose a character that does not occur in the value; None if the value holds no special-token string.

    Args:
        value: Strings in lists and mappings, such as a dialogue and its tools.
        pattern: Pattern of ``control_pattern``.
    """
    written = json.dumps(value, ensure_ascii=False, default=str)
    if pattern is None or not pattern.search(written):
        return None
    return next(character for character in _NONCHARACTERS if character not in written)


def protect(value: Any, pattern: re.Pattern[str] | None, guard: str | None) -> Any:
    """Insert the guard into each special-token string of a value.

    Args:
        value: Strings in lists and mappings.
        pattern: Pattern of ``control_pattern``.
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
