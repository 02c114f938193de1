"""Call a reward, and convert what it returns to one number per completion; other results count as failures."""

import copy
import math
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

MAX_TRACEBACK_LINES = 6
MAX_MESSAGE_CHARACTERS = 2000

UNORDERED = (str, bytes, bytearray, Mapping, Set)
"""Types that can be iterated over and are not lists of numbers."""


@dataclass(frozen=True)
class Answer:
    """The result of a reward for S completions.

    Args:
        values: For each completion a number, NaN if the reward gives none, None if the reward failed. Length S.
        failure: Kind of failure: ``failed`` (the reward raised), ``timed_out``, ``died``, ``not_called``,
            ``wrong_length`` or ``not_finite``; empty if there is none.
        message: Description of the failure; its last line is the error.
    """

    values: list[float | None]
    failure: str = ""
    message: str = ""


def failed_answer(size: int, failure: str, message: str) -> Answer:
    """Make the answer of a reward that failed for all completions."""
    return Answer([None] * size, failure, message[-MAX_MESSAGE_CHARACTERS:])


def ask(
    reward: Callable[..., Any],
    completions: Sequence[str],
    prompts: Sequence[Any],
    columns: Mapping[str, list],
    num_retries: int,
) -> Answer:
    """Call a reward on copies of its arguments, retry if it raises, and read its result.

    Args:
        reward: Callable ``(completions, prompts, **columns)`` that returns numbers.
        completions: Texts of the completions. Length S.
        prompts: Prompt of each completion. Length S.
        columns: Columns of the rows, each of length S.
        num_retries: Number of retries after a call that raised.
    """
    message = ""
    for _ in range(1 + num_retries):
        try:
            texts, of_prompts, named = copy.deepcopy((list(completions), list(prompts), dict(columns)))
            return read(reward(texts, of_prompts, **named), len(completions))
        except BaseException:  # foreign code: anything it raises, even SystemExit, is reported and counted
            message = "\n".join(traceback.format_exc().splitlines()[-MAX_TRACEBACK_LINES:])
    return failed_answer(len(completions), "failed", message)


def read(answer: Any, size: int) -> Answer:
    """Read the numbers of a result: any list, array, tensor or generator of the right length.

    Args:
        answer: What the reward returned, of any type. Its own methods may raise.
        size: Number of completions S.
    """
    if isinstance(answer, UNORDERED) or not _can_be_iterated(answer):
        return failed_answer(size, "wrong_length", f"it gave a {type(answer).__name__} for {size} completions")
    values = list(islice(answer, size + 1))  # one more than expected, since a generator may not end
    if len(values) != size:
        amount = f"{len(values)} numbers" if len(values) < size else "more numbers than one each"
        return failed_answer(size, "wrong_length", f"it gave {amount} for {size} completions")
    numbers = [_number(value) for value in values]
    if None not in numbers:
        return Answer(numbers)
    first = type(values[numbers.index(None)]).__name__
    message = f"it gave no finite number for {numbers.count(None)} of {size} completions (the first is a {first})"
    return Answer(numbers, "not_finite", message)


def _can_be_iterated(answer: Any) -> bool:
    try:
        iter(answer)
    except TypeError:  # also for an array without dimensions
        return False
    return True


def _number(value: Any) -> float | None:
    """NaN for None; None for a value that is not a finite number."""
    if value is None:
        return math.nan
    if isinstance(value, (str, bytes, bytearray)):
        return None
    try:
        number = float(value)  # also for elements of arrays and tensors
    except Exception:  # too large, not a single number, or an error of its own method
        return None
    return number if math.isfinite(number) else None
