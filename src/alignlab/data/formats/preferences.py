"""Formats of comparisons: Preference (pairs, groups, ranked lists) and Unpaired rows.

| in the record | accepted as |
|---|---|
| ``chosen``, ``rejected``: texts, messages or lists of messages | a pair |
| ``rejected``: a list of texts, of dialogues, or of single assistant messages | a group, one rejected or more |
| ``chosen_messages``, ``rejected_messages``, or ``chosen`` and ``rejected`` that begin with the prompt | the longest \
common beginning is the prompt |
| ``completions`` (or ``output``): a list, best first, or in any order with ``scores`` | best against the others |
| ``scores`` beside ``chosen`` and ``rejected`` | one per completion, the chosen first |
| ``label`` (also ``kto_tag``, ``desirable``) beside a dialogue or a completion: true or false, 1 or 0, good or bad | \
desirable or not |
| equal rejected completions; a rejected one that is a prefix of the chosen, or differs by a blank | kept as they are |
| a rejected completion with the score of ``chosen`` | kept: ``chosen`` says which one is better |
| missing or empty prompt or completion; no rejected; the chosen among the rejected; different prompts; a chosen with \
a lower score; a tie for the best of ``completions``; scores that are not finite | refused |
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from alignlab.data.formats.fields import BadRow, filled, from_json_text, is_finite, pop, pop_tools, type_name
from alignlab.data.formats.messages import Dialogue, as_messages, as_turns, check_order, continued, is_opened, split
from alignlab.data.formats.prompts import DIALOGUES, QUESTIONS, pop_dialogue, pop_prompt, with_system
from alignlab.types.rows import Preference, Unpaired

VERDICTS = dict.fromkeys(("true", "1", "1.0", "good", "desirable", "chosen", "yes"), True)
VERDICTS |= dict.fromkeys(("false", "0", "0.0", "bad", "undesirable", "rejected", "no"), False)
"""What a label says about its completion; case does not matter."""

LABELS = ("label", "kto_tag", "desirable")


def preference(record: dict[str, Any], origin: str) -> Preference:
    """``chosen`` and ``rejected``, with the prompt in its own field or at their beginning."""
    suffix = "_messages" if "chosen_messages" in record or "rejected_messages" in record else ""
    chosen, rejected = (pop(record, f"{name}{suffix}") for name in ("chosen", "rejected"))
    completions = [as_turns(chosen, "chosen", "assistant"), *_candidates(rejected, "rejected")]
    scores = _scores(record.pop("scores", None), len(completions))
    if scores and scores[0] < max(scores[1:]):
        raise BadRow("field 'scores' gives a rejected completion more than the chosen one, which comes first")
    return _compare(record, origin, completions, scores)


def ranked(record: dict[str, Any], origin: str) -> Preference:
    """``completions`` from best to worst, or in any order with ``scores``."""
    name = "completions" if "completions" in record else "output"
    completions = _candidates(pop(record, name), name)
    scores = _scores(record.pop("scores", None), len(completions))
    if len(completions) < 2:
        raise BadRow(f"field {name!r} holds one completion where a ranking needs two or more")
    if scores:
        order = sorted(range(len(completions)), key=lambda index: -scores[index])
        completions, scores = [completions[i] for i in order], tuple(scores[i] for i in order)
        if scores[0] == scores[1]:
            raise BadRow("field 'scores' has a tie for the best completion")
    return _compare(record, origin, completions, scores)


def unpaired(record: dict[str, Any], origin: str) -> Unpaired:
    """A dialogue, or a prompt and a completion, with a ``label``."""
    name = next(iter(filled(record, LABELS)), "label")
    label = pop(record, name)
    verdict = VERDICTS.get(str(label).strip().lower())
    if verdict is None:
        raise BadRow(f"field {name!r} is {label!r} where true or false is needed")
    if filled(record, DIALOGUES):
        messages = pop_dialogue(record)
    else:
        name = next(iter(filled(record, ("completion", "response", "output", "answer"))), "completion")
        messages = continued(pop_prompt(record), as_turns(pop(record, name), name, "assistant"), name)
    prompt, completion = split(messages)
    _check(prompt, completion, "messages")
    tools = pop_tools(record)
    prompt, completion = _without_loss_flags(prompt), _without_loss_flags(completion)
    return Unpaired(prompt=prompt, completion=completion, desirable=verdict, tools=tools, origin=origin, columns=record)


def _candidates(value: Any, field: str) -> list[Dialogue]:
    """Read one completion, or a list of texts, dialogues or assistant messages."""
    if not isinstance(value, list):
        return [as_turns(value, field, "assistant")]
    if not value:
        raise BadRow(f"field {field!r} is an empty list")
    if all(isinstance(item, dict) for item in value):
        dialogue = as_messages(value, field)
        shared = all(message["role"] == "assistant" for message in dialogue)
        return [[message] for message in dialogue] if shared else [dialogue]
    return [as_turns(item, f"{field}[{index}]", "assistant") for index, item in enumerate(value)]


def _compare(record: dict[str, Any], origin: str, completions: list[Dialogue], scores) -> Preference:
    has_prompt = completions[0][0]["role"] != "assistant"
    lead = with_system(record, []) if has_prompt else []
    has_prompt_field = not has_prompt or filled(record, (*DIALOGUES, *QUESTIONS))
    given = pop_prompt(record) if has_prompt_field else []
    if is_opened(given) and not has_prompt:
        given, completions = given[:-1], [continued(given[-1:], one, "chosen or rejected") for one in completions]
    dialogues = [_without_loss_flags((lead if has_prompt else given) + completion) for completion in completions]
    prompt = _common_beginning(dialogues) if has_prompt else _without_loss_flags(given)
    if not prompt:
        raise BadRow("field 'rejected' has another prompt than 'chosen'")
    if has_prompt and given and given[-1]["content"] not in [message["content"] for message in prompt]:
        raise BadRow("field 'prompt' differs from the prompt inside 'chosen'")
    chosen, *rejected = (dialogue[len(prompt) :] for dialogue in dialogues)
    if chosen in rejected:
        raise BadRow("field 'rejected' holds the chosen completion")
    for field, completion in [("chosen", chosen), *((f"rejected[{i}]", item) for i, item in enumerate(rejected))]:
        _check(prompt, completion, field)
    tools = pop_tools(record)
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=tuple(rejected),
        scores=scores,
        tools=tools,
        origin=origin,
        columns=record,
    )


def _common_beginning(dialogues: Sequence[Sequence[dict[str, Any]]]) -> tuple[dict[str, Any], ...]:
    shared = takewhile(lambda messages: all(m == messages[0] for m in messages), zip(*dialogues, strict=False))
    return tuple(messages[0] for messages in shared)


def _without_loss_flags(messages: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Messages without loss flags, which have no meaning where whole completions are compared.

    Raises:
        BadRow: A message has another weight than 0 or 1.
    """
    if any("weight" in message for message in messages):
        why = "a message has a weight of its own, and completions are compared as a whole"
        raise BadRow(why, "Remove it, or type method.weight_column=COLUMN for one weight per row")
    return tuple({key: value for key, value in message.items() if key != "supervised"} for message in messages)


def _check(prompt: Sequence[dict[str, Any]], completion: Sequence[dict[str, Any]], field: str) -> None:
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        raise BadRow("the prompt does not end with a user message")
    if not completion or completion[-1]["role"] != "assistant":
        raise BadRow(f"field {field!r} does not end with an assistant message after the prompt")
    check_order([*prompt, *completion], field)


def _scores(scores: Any, count: int) -> tuple[float, ...] | None:
    if scores is None:
        return None
    scores = from_json_text(scores, "scores")
    if not isinstance(scores, list):
        raise BadRow(f"field 'scores' is {type_name(scores)} where a list of numbers is needed")
    for index, score in enumerate(scores):
        if type(score) not in (int, float):
            raise BadRow(f"field 'scores[{index}]' is {type_name(score)} where a number is needed")
    if len(scores) != count:
        raise BadRow(f"field 'scores' has {len(scores)} numbers for {count} completions")
    if not all(map(is_finite, scores)):
        raise BadRow("field 'scores' holds a number that is not finite")
    return tuple(map(float, scores))
