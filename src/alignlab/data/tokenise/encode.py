"""Text to token ids, such that what a row says can never act as a special token.

A special-token string inside a content (``<|im_end|>`` in a user's text) is split by a guard character before the
template renders, and the text is cut at the guards before it is encoded: the marker becomes ordinary text tokens, while
those that the template itself writes stay special. Tokens that the tokenizer does not flag as special (``<think>``)
are left alone: they are vocabulary that contents may use.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedTokenizerBase

_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


def control_pattern(tokenizer: PreTrainedTokenizerBase, stop: Collection[int]) -> re.Pattern[str] | None:
    """Matches the strings that contents must not smuggle in: special tokens and stop tokens; None where there are none.

    Args:
        tokenizer: Its tokens flagged special.
        stop: Further ids, special or not.
    """
    added = tokenizer.added_tokens_decoder
    strings = {token.content for id_, token in added.items() if token.special or id_ in stop}
    strings |= {*tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens(list(stop))}
    longest_first = sorted((s for s in strings if len(s) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def find_guard(value: Any, pattern: re.Pattern[str] | None) -> str | None:
    """A character that occurs nowhere in the value, where the value holds special-token strings; else None.

    Args:
        value: Strings in lists and mappings, as a dialogue and its tools.
        pattern: From `control_pattern`.
    """
    written = json.dumps(value, ensure_ascii=False, default=str)
    if pattern is None or not pattern.search(written):
        return None
    return next(character for character in _NONCHARACTERS if character not in written)


def protect(value: Any, pattern: re.Pattern[str] | None, guard: str | None) -> Any:
    """The value with the guard put inside each special-token string.

    Args:
        value: Strings in lists and mappings.
        pattern: From `control_pattern`.
        guard: From `find_guard`; None changes nothing.
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
    """Token ids of a text, without the special tokens that the tokenizer would add around it.

    Args:
        text: Rendered text; guards in it vanish.
        tokenizer: What encodes.
        guard: Where to cut, so that no special-token string stands whole.
    """
    first, *others = text.split(guard) if guard else [text]
    ids = tokenizer.encode(first, add_special_tokens=False, verbose=False)
    for piece in others:
        ids += encode_continuation(piece, tokenizer)
    return ids


def encode_continuation(text: str, tokenizer: PreTrainedTokenizerBase, guard: str | None = None) -> list[int]:
    """Token ids of a text that goes on after another, so without the blank that some tokenizers put in front.

    Args:
        text: What follows.
        tokenizer: What encodes; one that marks the beginning of a text (SentencePiece's ▁) is led past it by an anchor.
        guard: As in `encode`.
    """
    for anchor in ("\n", "x"):
        lead = encode(anchor, tokenizer)
        ids = encode(anchor + text, tokenizer, guard)
        if ids[: len(lead)] == lead:
            return ids[len(lead) :]
    return encode(text, tokenizer, guard)
