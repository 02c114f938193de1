"""Supervised spans of a dialogue, by position, and the checks that refuse a broken mask.

Where a supervised turn begins and ends is found by rendering, without template markers: the dialogue up to the turn,
with the opening of an answer, must be the beginning of the whole dialogue, as text and as token ids. So the ids before
an answer are the ids that generation sees. What a template inserts into an answer (an empty think block) is supervised
with it. The last supervised token of a turn is one that generation stops on; a line break behind it is not supervised.
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
    """Token ids of a dialogue up to its last supervised token, their mask, and where the completion begins.

    Args:
        dialogue: Rendered.
        num_given: How many messages are the prompt; None: everything before the first supervised token.

    Raises:
        InputError: Nothing would be supervised, the spans cannot be found, a turn does not end in a stop token, BOS or
            EOS is doubled, or the template loses a content.
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
    """Refuse doubled BOS at the front and doubled EOS anywhere.

    Args:
        dialogue: Names the row and the template.
        tokens: Its ids.
    """
    tokenizer = dialogue.context.tokenizer
    doubled = {
        "bos_token": tokenizer.bos_token_id is not None and list(tokens[:2]) == [tokenizer.bos_token_id] * 2,
        "eos_token": any(first == second == tokenizer.eos_token_id for first, second in pairwise(tokens)),
    }
    for name in (name for name, found in doubled.items() if found):
        why = f"{name} stands twice in a row: the template writes it, and so does something else"
        raise dialogue.refusal(why, f"a jinja file that writes {name} once", ANOTHER_TEMPLATE, LEAVE_OUT)


def _spans(dialogue: Dialogue, num_given: int | None) -> list[Span]:
    """Where each supervised turn begins and ends in the text, its end token included."""
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
        why = f"an earlier answer is rendered otherwise once the dialogue goes on ({_parting(text, through)})"
        raise dialogue.refusal(why, _LAST, ANOTHER_TEMPLATE, LEAVE_OUT)
    answer = squeeze(text[start : len(through)])
    for part in _parts(dialogue.messages[turn]):
        if squeeze(part) not in answer:
            why = f"the template leaves out a part of an answer: {part[:40]!r}"
            raise dialogue.refusal(why, ANOTHER_TEMPLATE, LEAVE_OUT)
    return start, len(through)


def _parts(message: Message) -> Iterable[str]:
    """What an answer says, and must be found in its rendering."""
    yield from (message[field] for field in ("content", "reasoning_content") if message.get(field))
    yield from ((call.get("function") or call)["name"] for call in message.get("tool_calls") or [])


def _opening(dialogue: Dialogue, turn: int) -> int:
    """Length of the text that generation would be given before this turn."""
    before = dialogue.render(turn, add_generation_prompt=True)
    if not dialogue.text.startswith(before):
        why = f"generation would open an answer otherwise than the dialogue does ({_parting(before, dialogue.text)})"
        raise dialogue.refusal(why, _LAST if turn < len(dialogue.messages) - 1 else _ALL, ANOTHER_TEMPLATE, LEAVE_OUT)
    return len(before)


def _encode_at(dialogue: Dialogue, cuts: list[int]) -> tuple[list[int], dict[int, int]]:
    """Token ids such that at each cut the ids before it are those of the text before it, and the cuts as positions.

    A token that would reach across the last cut (an answer that begins with a line break) is split there, as generation
    would do; across an earlier cut it cannot be, since generation encodes that answer as a part of a prompt.
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
    """Per token whether it is supervised; the first token of a dialogue never is, since nothing predicts it."""
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
    """Refuse an answer whose last token generation would not stop on: the model would never learn to stop."""
    stop = dialogue.context.stop
    if not tokens or tokens[-1] not in stop:
        names = dialogue.context.tokenizer.convert_ids_to_tokens(sorted(stop))
        why = f"an answer ends in {dialogue.text[:end][-12:]!r}, on which generation does not stop (only on {names})"
        eos = "set the tokenizer's eos_token to the token that ends an answer"
        raise dialogue.refusal(why, ANOTHER_TEMPLATE, LEAVE_OUT, eos)


def _parting(text: str, other: str) -> str:
    """Both texts from where they part."""
    shared = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return f"{text[shared : shared + 24]!r} against {other[shared : shared + 24]!r}"
