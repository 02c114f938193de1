"""How the turns of an assistant end in a chat template, and which tokens generation stops on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from alignlab.data.tokenise.encode import one_of
from alignlab.data.tokenise.templates import PROBE, PROBE_TOOLS, Template, render
from alignlab.types.rows import Message

PROBE_CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "000000000", "type": "function", "function": {"name": "f", "arguments": {"x": "0"}}}],
}
AFTER_TEXT = {"role": "user", "content": "0"}
AFTER_CALL = {"role": "tool", "name": "f", "tool_call_id": "000000000", "content": "0"}
"""Messages that follow an answer and a call of a tool."""


@dataclass(frozen=True)
class TurnEnds:
    """How the turns of an assistant end in a template.

    Args:
        stop: Ids that generation stops on.
        after_text: Where the template writes nothing after an answer (GLM), the token that begins the next message of
            the user, with blanks before it; it ends the answer. Otherwise empty.
        after_call: The same for a call and the message of the tool.
        stops: Pattern of the strings of ``stop``; None where there are none.
        added: Pattern of the strings of added tokens; None where there are none.
    """

    stop: frozenset[int]
    after_text: str
    after_call: str
    stops: re.Pattern[str] | None
    added: re.Pattern[str] | None

    def cut(self, text: str) -> str:
        """Remove an end of the dialogue (Phi-3's EOS) that stands on another line than the end of its last turn.

        Args:
            text: A dialogue, without blanks at its end.
        """
        if self.stops is None or self.added is None:
            return text
        match = re.search(rf"(?:{self.stops.pattern})(?=\s+(?:{self.added.pattern})+$)", text)
        return text[: match.end()] if match else text

    def skip(self, text: str, position: int) -> int:
        """The position behind the added tokens and blanks at a position.

        Args:
            text: Rendered text.
            position: Where to begin.
        """
        match = self.added and re.compile(rf"(?:\s|{self.added.pattern})*").match(text, position)
        return match.end() if match else position


def find_turn_ends(tokenizer: PreTrainedTokenizerBase, template: Template) -> TurnEnds:
    """Find how turns end by rendering short dialogues: an answer, and a call of a tool.

    Generation stops on EOS, and on the last of the adjacent added tokens after an answer; on the token flagged as
    special that ends a call; and on those that begin the next message, where nothing stands after an answer.

    Args:
        tokenizer: The tokenizer, for its EOS and its added tokens.
        template: The template.
    """
    added = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    pattern = one_of(added)
    ends: set[str] = set()
    after_text = after_call = ""
    for tools in PROBE_TOOLS:
        tail = _tail(template, tokenizer, PROBE, tools)
        if tail is None or pattern is None:
            continue
        if run := re.search(rf"(?:{pattern.pattern})+", tail):
            ends.add(pattern.findall(run[0])[-1])
            call = (_tail(template, tokenizer, [PROBE[0], PROBE_CALL], tools, whole=True) or "").rstrip()
            call = TurnEnds(frozenset(), "", "", one_of(ends), pattern).cut(call)
            ends |= {token for token in pattern.findall(call)[-1:] if token in special and call.endswith(token)}
        elif not tail.strip():
            after_text = _beginning(template, tokenizer, [*PROBE, AFTER_TEXT], tools, pattern)
            after_call = _beginning(template, tokenizer, [PROBE[0], PROBE_CALL, AFTER_CALL], tools, pattern)
            ends |= {token for token in (after_text.strip(), after_call.strip()) if token}
    stop = frozenset({tokenizer.eos_token_id} - {None} | {added[token] for token in ends})
    stops = one_of(tokenizer.convert_ids_to_tokens(sorted(stop)))
    return TurnEnds(stop, after_text, after_call, stops, pattern)


def _tail(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    whole: bool = False,
) -> str | None:
    """What a template writes after the content of an answer, or the whole dialogue; None if it refuses it."""
    try:
        text = render(template, tokenizer, messages, tools)
    except TemplateError:
        return None
    return text if whole else text.rpartition("probe")[2]


def _beginning(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    added: re.Pattern[str],
) -> str:
    """The added token with which a template begins the last message, with blanks before it; empty if there is none."""
    before = (_tail(template, tokenizer, messages[:-1], tools, whole=True) or "").rstrip()
    through = _tail(template, tokenizer, messages, tools, whole=True) or ""
    match = re.match(rf"\s*(?:{added.pattern})", through[len(before) :]) if through.startswith(before) else None
    return match[0] if match else ""


def stop_tokens(tokenizer: PreTrainedTokenizerBase, template: Template) -> frozenset[int]:
    """The ids that generation stops on; see ``find_turn_ends``.

    Args:
        tokenizer: The tokenizer, for its EOS and its added tokens.
        template: The template.
    """
    return find_turn_ends(tokenizer, template).stop
