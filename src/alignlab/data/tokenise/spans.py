"""Supervised spans of a dialogue by position, and checks of the mask.

The beginning and the end of a supervised turn are found by rendering, without template markers: the dialogue up to the
turn, with the opening of an assistant turn, must be a prefix of the whole dialogue, as text and as token ids. The ids
before a supervised turn are therefore those that generation sees. What a template inserts into a turn (an empty think
block) is supervised with it. The last supervised token of a turn is one that generation stops on; a line break after it
is not supervised.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from alignlab.data.tokenise.dialogue import ANOTHER_TEMPLATE, LEAVE_OUT, Dialogue, squeeze
from alignlab.data.tokenise.encode import encode_continuation
from alignlab.types.rows import Message

_LAST = "data.loss_on=last"
_ALL = "data.loss_on=all"

Span = tuple[int, int]


def supervise(dialogue: Dialogue, num_given: int | None) -> tuple[list[int], list[bool], int]:
    """Encode a dialogue up to its last supervised token, and find its supervised tokens.

    Args:
        dialogue: A rendered dialogue.
        num_given: Number of messages in the prompt; None for everything before the first supervised token.

    Returns:
        Token ids, whether each is supervised, and the position at which the completion begins.

    Raises:
        InputError: Nothing would be supervised, the spans cannot be found, a turn does not end in a stop token, BOS or
            EOS is doubled, or the template leaves out a content.
    """
    dialogue.check_contents()
    spans = _spans(dialogue, num_given)
    opening = [] if num_given is None else [_opening(dialogue, num_given)]
    tokens, positions = _encode_at(dialogue, sorted({*opening, *(start for start, _ in spans)}))
    check_doubled(dialogue, tokens)
    supervised = _mask(dialogue, tokens, spans, positions)
    length = len(tokens) - supervised[::-1].index(True)
    start = positions[opening[0]] if opening else supervised.index(True)
    return tokens[:length], supervised[:length], start


def check_doubled(dialogue: Dialogue, tokens: Sequence[int]) -> None:
    """Check that BOS is not doubled at the beginning, nor EOS anywhere.

    Args:
        dialogue: The dialogue, for the error.
        tokens: Its token ids.
    """
    tokenizer = dialogue.context.tokenizer
    doubled = {
        "bos_token": tokenizer.bos_token_id is not None and list(tokens[:2]) == [tokenizer.bos_token_id] * 2,
        "eos_token": any(first == second == tokenizer.eos_token_id for first, second in pairwise(tokens)),
    }
    for name in (name for name, found in doubled.items() if found):
        why = f"{name} appears twice in a row in the rendered dialogue"
        raise dialogue.refusal(why, f"a jinja file that writes {name} once", ANOTHER_TEMPLATE, LEAVE_OUT)


def _spans(dialogue: Dialogue, num_given: int | None) -> list[Span]:
    """Beginning and end of each supervised turn in the text, including its end token."""
    loss_on, messages = dialogue.context.settings.loss_on, dialogue.messages
    if loss_on == "all":
        return [(0 if num_given is None else _opening(dialogue, num_given), len(dialogue.text))]
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= (num_given or 0)]
    turns = [i for i in (turns[-1:] if loss_on == "last" else turns) if messages[i].get("supervised", True)]
    if not turns:
        why = f"nothing would be supervised: no assistant turn that counts under data.loss_on={loss_on}"
        raise dialogue.refusal(why, _ALL, "data.columns to name the fields that hold the answers", LEAVE_OUT)
    return [_span(dialogue, turn) for turn in turns]


def _span(dialogue: Dialogue, turn: int) -> Span:
    start, text = _opening(dialogue, turn), dialogue.text
    through = text if turn == len(dialogue.messages) - 1 else dialogue.render(turn + 1).rstrip()
    if not text.startswith(through):
        differs = _difference(text, through)
        why = f"an earlier assistant turn is rendered differently when the dialogue continues ({differs})"
        raise dialogue.refusal(why, _LAST, ANOTHER_TEMPLATE, LEAVE_OUT)
    answer = squeeze(text[start : len(through)])
    for part in _required_texts(dialogue.messages[turn]):
        if squeeze(part) not in answer:
            raise dialogue.loss(f"a part of an answer: {part[:40]!r}")
    return start, len(through)


def _required_texts(message: Message) -> Iterable[str]:
    """Texts of an assistant message that its rendering must contain."""
    yield from (message[field] for field in ("content", "reasoning_content") if message.get(field))
    yield from ((call.get("function") or call)["name"] for call in message.get("tool_calls") or [])


def _opening(dialogue: Dialogue, turn: int) -> int:
    """Length of the text that generation sees before this turn."""
    before = dialogue.render(turn, add_generation_prompt=True)
    if not dialogue.text.startswith(before):
        differs = _difference(before, dialogue.text)
        why = f"the generation prompt differs from the dialogue before an assistant turn ({differs})"
        raise dialogue.refusal(why, _LAST if turn < len(dialogue.messages) - 1 else _ALL, ANOTHER_TEMPLATE, LEAVE_OUT)
    return len(before)


def _encode_at(dialogue: Dialogue, cuts: list[int]) -> tuple[list[int], dict[int, int]]:
    """Encode the text such that the ids before each cut are those of the text before it; return ids and cut positions.

    A token that would cross the last cut (an answer that begins with a line break) is split there, as in generation. A
    token that would cross an earlier cut is an error, since generation encodes that answer as a part of a prompt.
    """
    text, context = dialogue.text, dialogue.context
    tokens = dialogue.encode(text)
    prefixes = {cut: dialogue.encode(text[:cut]) for cut in cuts}
    last = prefixes[cuts[-1]]
    if tokens[: len(last)] != last:
        tokens = last + encode_continuation(text[cuts[-1] :], context.tokenizer, dialogue.guard)
    if any(tokens[: len(prefix)] != prefix for prefix in prefixes.values()):
        why = "a token reaches from the opening of an answer into the answer, so generation would see other ids"
        raise dialogue.refusal(why, _LAST, ANOTHER_TEMPLATE, LEAVE_OUT)
    return tokens, {cut: len(prefix) for cut, prefix in prefixes.items()}


def _mask(dialogue: Dialogue, tokens: list[int], spans: list[Span], positions: dict[int, int]) -> list[bool]:
    """Whether each token is supervised; the first token of a dialogue never is, since nothing predicts it."""
    supervised = [False] * len(tokens)
    for start, end in spans:
        first = positions[start]
        last = len(tokens) if end == len(dialogue.text) else len(dialogue.encode(dialogue.text[:end]))
        if dialogue.ends_in_answer(end):
            _check_end(dialogue, tokens[:last], end)
        supervised[first:last] = [True] * (last - first)
    supervised[:1] = [False]
    if not any(supervised):
        raise dialogue.refusal("nothing would be supervised: the answer is empty", _ALL, ANOTHER_TEMPLATE, LEAVE_OUT)
    return supervised


def _check_end(dialogue: Dialogue, tokens: list[int], end: int) -> None:
    """Check that a turn ends in a token that generation stops on; otherwise the model would never learn to stop."""
    stop = dialogue.context.stop
    if not tokens or tokens[-1] not in stop:
        names = dialogue.context.tokenizer.convert_ids_to_tokens(sorted(stop))
        why = f"an answer ends in {dialogue.text[:end][-12:]!r}, on which generation does not stop (only on {names})"
        eos = "set the tokenizer's eos_token to the token that ends an answer"
        raise dialogue.refusal(why, ANOTHER_TEMPLATE, LEAVE_OUT, eos)


def _difference(text: str, other: str) -> str:
    """Both texts from the first character that differs."""
    shared = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return f"{text[shared : shared + 24]!r} against {other[shared : shared + 24]!r}"
