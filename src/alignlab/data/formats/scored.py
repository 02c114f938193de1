"""Format of completions that were sampled and rewarded before, for ``rollout=data``.

| in the record | becomes |
|---|---|
| ``completions``: texts or lists of token ids; ``rewards``: a number or null for each | a prompt with these columns |
| ``logps``: the log-probability of each token of each completion when it was sampled | kept beside them |
| another number of rewards or log-probs; a reward that is not finite; ``logps`` beside texts | refused |
"""

from typing import Any

from alignlab.data.formats.demonstrations import prompt
from alignlab.data.formats.encoded import numbers
from alignlab.data.formats.fields import BadRow, filled_text, from_json_text, is_finite, pop, type_name
from alignlab.types.rows import Prompt

COLUMNS = ("completions", "rewards", "logps")


def scored(record: dict[str, Any], origin: str) -> Prompt:
    """A prompt with ``completions``, their ``rewards`` and, if they are token ids, their ``logps``."""
    given = {name: _list(pop(record, name), name) for name in COLUMNS[:2]}
    if record.get("logps") is not None:
        given["logps"] = _list(record["logps"], "logps")
    record.pop("logps", None)
    completions = [_completion(value, f"completions[{i}]") for i, value in enumerate(given["completions"])]
    if not completions:
        raise BadRow("field 'completions' is an empty list")
    for name in given:
        if len(given[name]) != len(completions):
            raise BadRow(f"field {name!r} has {len(given[name])} entries for {len(completions)} completions")
    for index, reward in enumerate(given["rewards"]):
        _check_number(reward, f"rewards[{index}]", nullable=True)
    for index, (tokens, logps) in enumerate(zip(completions, given.get("logps", []), strict=False)):
        if isinstance(tokens, str):  # their number of tokens is not known here
            raise BadRow("field 'logps' stands beside completions as texts", "Give the completions as token ids")
        if len(_list(logps, f"logps[{index}]")) != len(tokens):
            raise BadRow(f"field 'logps[{index}]' has {len(logps)} numbers for {len(tokens)} tokens")
        for position, value in enumerate(logps):
            _check_number(value, f"logps[{index}][{position}]", nullable=False)
    return prompt(record | given | {"completions": completions}, origin)


def _list(value: Any, field: str) -> list:
    value = from_json_text(value, field)
    if not isinstance(value, list):
        raise BadRow(f"field {field!r} is {type_name(value)} where a list is needed")
    return value


def _completion(value: Any, field: str) -> str | list[int]:
    if value == []:
        raise BadRow(f"field {field!r} is an empty list")
    return list(numbers(value, field)) if isinstance(value, list) else filled_text(value, field)


def _check_number(value: Any, field: str, nullable: bool) -> None:
    if value is None and nullable:
        return
    if type(value) not in (int, float) or not is_finite(value):
        shown = value if type(value) is float else type_name(value)
        raise BadRow(f"field {field!r} is {shown} where a finite number is needed")
