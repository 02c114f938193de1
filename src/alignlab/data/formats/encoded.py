"""Formats of rows that were tokenised before: token ids with a mask of the loss.

| in the record | becomes |
|---|---|
| ``input_ids`` with ``labels`` (-100 where there is no loss), ``completion_mask`` or ``assistant_masks`` | a sequence |
| ``prompt_input_ids`` with ``completion_input_ids`` | a prompt and its completion, all of it in the loss |
| ``prompt_input_ids`` with ``chosen_input_ids`` and ``rejected_input_ids`` (one, or a list of several) | a group |
| ``attention_mask`` with a 0; a label that is neither -100 nor the token; no token in the loss | refused |
"""

from collections.abc import Sequence
from typing import Any

from alignlab.data.formats.fields import BadRow, from_json_text, pop, type_name
from alignlab.types.rows import Encoded

MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
NO_LOSS = -100
"""The label that PyTorch's cross entropy ignores."""


def sequence(record: dict[str, Any], origin: str) -> Encoded:
    """``input_ids`` with ``labels`` or a mask."""
    tokens = numbers(pop(record, "input_ids"), "input_ids")
    attention = record.pop("attention_mask", None)
    if attention is not None and not all(numbers(attention, "attention_mask")):
        raise BadRow("field 'attention_mask' hides tokens", "Remove the padding from input_ids and from the labels")
    names = [name for name in ("labels", *MASKS) if record.get(name) is not None]
    if not names:
        raise BadRow("there are input_ids, and neither labels nor a mask that says which of them are in the loss")
    values = numbers(record.pop(names[0]), names[0])
    if len(values) != len(tokens):
        raise BadRow(f"field {names[0]!r} has {len(values)} numbers for {len(tokens)} tokens")
    if names[0] == "labels":
        wrong = [
            i for i, (label, token) in enumerate(zip(values, tokens, strict=True)) if label not in (NO_LOSS, token)
        ]
        if wrong:
            raise BadRow(f"field 'labels[{wrong[0]}]' is neither {NO_LOSS} nor the token at its place")
        supervised = tuple(label != NO_LOSS for label in values)
    else:
        supervised = tuple(map(bool, values))
    if not any(supervised[1:]):
        raise BadRow(f"field {names[0]!r} puts no token into the loss")
    start = max(1, supervised.index(True))
    return Encoded(
        prompt=tokens[:start],
        completions=(tokens[start:],),
        supervised=(supervised[start:],),
        origin=origin,
        columns=record,
    )


def pair(record: dict[str, Any], origin: str) -> Encoded:
    """``prompt_input_ids`` with a completion, or with a chosen one and one or more rejected ones."""
    prompt = numbers(pop(record, "prompt_input_ids"), "prompt_input_ids")
    name = "chosen_input_ids" if "chosen_input_ids" in record else "completion_input_ids"
    completions = [numbers(pop(record, name), name)]
    if name == "chosen_input_ids":
        rejected = from_json_text(pop(record, "rejected_input_ids"), "rejected_input_ids")
        several = isinstance(rejected, list) and rejected and isinstance(rejected[0], list)
        for index, one in enumerate(rejected if several else [rejected]):
            completions.append(numbers(one, f"rejected_input_ids[{index}]" if several else "rejected_input_ids"))
        if completions[0] in completions[1:]:
            raise BadRow("field 'rejected_input_ids' holds the chosen completion")
    if not prompt or not all(completions):
        raise BadRow("a prompt or a completion has no tokens")
    masks = tuple((True,) * len(tokens) for tokens in completions)
    return Encoded(prompt=prompt, completions=tuple(completions), supervised=masks, origin=origin, columns=record)


def numbers(value: Any, field: str) -> tuple[int, ...]:
    """Read a list of whole numbers, or its JSON text.

    Raises:
        BadRow: It is anything else.
    """
    value = from_json_text(value, field)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow(f"field {field!r} is {type_name(value)} where a list of whole numbers is needed")
    for index, number in enumerate(value):
        if type(number) not in (int, bool):
            raise BadRow(f"field '{field}[{index}]' is {type_name(number)} where a whole number is needed")
    return tuple(map(int, value))
