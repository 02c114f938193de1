"""What a reward answers, read as one number per completion whatever it is; what cannot be read is a failure."""

import copy
import math
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

MAX_TRACEBACK_LINES = 6
MAX_TOLD_CHARACTERS = 2000

UNORDERED = (str, bytes, bytearray, Mapping, Set)
"""What can be iterated over and is no list of numbers."""


@dataclass(frozen=True)
class Answer:
    """What a reward said of some completions.

    Args:
        values: A number, NaN where it has no opinion, None where it failed. Length S.
        failure: What went wrong where it failed: ``failed`` (it raised), ``timed_out``, ``died``, ``not_called``,
            ``wrong_length`` or ``not_finite``.
        told: The same in words; the last line is the error.
    """

    values: list[float | None]
    failure: str = ""
    told: str = ""


def nothing(size: int, failure: str, told: str) -> Answer:
    """The answer of a reward that failed for all completions."""
    return Answer([None] * size, failure, told[-MAX_TOLD_CHARACTERS:])


def ask(
    reward: Callable[..., Any],
    completions: Sequence[str],
    prompts: Sequence[Any],
    columns: Mapping[str, list],
    num_retries: int,
) -> Answer:
    """Call a reward on copies of its arguments, again where it raised, and read its answer.

    Args:
        reward: ``(completions, prompts, **columns)`` → numbers.
        completions: S texts.
        prompts: Of each. Length S.
        columns: Each of length S.
        num_retries: Further calls after one that raised.
    """
    told = ""
    for _ in range(1 + num_retries):
        try:
            texts, of_prompts, named = copy.deepcopy((list(completions), list(prompts), dict(columns)))
            return read(reward(texts, of_prompts, **named), len(completions))
        except BaseException:  # code of others: whatever it raises, SystemExit too, is told and counted
            told = "\n".join(traceback.format_exc().splitlines()[-MAX_TRACEBACK_LINES:])
    return nothing(len(completions), "failed", told)


def read(answer: Any, size: int) -> Answer:
    """Numbers out of what a reward returned: any list, array, tensor or generator of the right length.

    Args:
        answer: Anything; reading it may raise what its own methods raise.
        size: S.
    """
    if isinstance(answer, UNORDERED) or not _can_be_iterated(answer):
        return nothing(size, "wrong_length", f"it gave a {type(answer).__name__} for {size} completions")
    values = list(islice(answer, size + 1))  # one more than wanted, for generators may have no end
    if len(values) != size:
        amount = f"{len(values)} numbers" if len(values) < size else "more numbers than one each"
        return nothing(size, "wrong_length", f"it gave {amount} for {size} completions")
    numbers = [_number(value) for value in values]
    if None not in numbers:
        return Answer(numbers)
    first = type(values[numbers.index(None)]).__name__
    told = f"it gave no finite number for {numbers.count(None)} of {size} completions (the first is a {first})"
    return Answer(numbers, "not_finite", told)


def _can_be_iterated(answer: Any) -> bool:
    try:
        iter(answer)
    except TypeError:  # an array without an axis, too
        return False
    return True


def _number(value: Any) -> float | None:
    """NaN for no opinion, None for what is no finite number."""
    if value is None:
        return math.nan
    if isinstance(value, (str, bytes, bytearray)):
        return None
    try:
        number = float(value)  # numbers of arrays and tensors too
    except Exception:  # too large, more than one number, or whatever its own method raises
        return None
    return number if math.isfinite(number) else None
