"""Worked solutions, column by column, and typical mistakes in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Literal

from alignlab.data.sources.arithmetic.problems import Problem


@dataclass(frozen=True)
class Solution:
    """Worked steps and their answer, right or wrong.

    Args:
        reasoning: One sentence per operation: the operation, then its columns from the units up.
        answer: The final number as text.
    """

    reasoning: str
    answer: str

    def __str__(self) -> str:
        return f"<reasoning>{self.reasoning}</reasoning><answer>{self.answer}</answer>"


@dataclass(frozen=True)
class Mistake:
    """A mistake in one operation; the default is no mistake.

    Args:
        sign: Sign of the operation that is carried out instead; empty for the right one.
        carry: When a carry (or a borrow) is applied to the next column.
        left_out: Column, counted from the units, that is left out.
        swapped: Whether each column of a subtraction takes the smaller digit from the larger one.
        slip: Column, counted from the units, and the number by which its written result is off.
    """

    sign: str = ""
    carry: Literal["due", "never", "always"] = "due"
    left_out: int | None = None
    swapped: bool = False
    slip: tuple[int, int] = (0, 0)


RIGHT = Mistake()


def solve(problem: Problem) -> Solution:
    """Solve a problem without mistakes."""
    return _work(problem)


def wrong_solutions(problem: Problem, rng: Random) -> Iterator[Solution]:
    """Yield worked wrong solutions, each with another wrong answer, the likelier mistakes first.

    The likeliest mistake is a forgotten carry or borrow, if the problem has one.

    Args:
        problem: The problem to solve.
        rng: Shuffles mistakes of the same likelihood.
    """
    seen = {solve(problem).answer}
    for mistake, at in _mistakes(len(problem.signs), rng):
        try:
            solution = _work(problem, at, mistake)
        except ValueError:  # the mistake leads below 0, or has no column to happen in
            continue
        if solution.answer not in seen:
            seen.add(solution.answer)
            yield solution


LIKELIEST = (Mistake(carry="never"),)
LIKELY = (
    Mistake(carry="always"),
    Mistake(swapped=True),
    Mistake(sign="+"),
    Mistake(sign="-"),
    Mistake(left_out=0),
    Mistake(left_out=1),
)
SLIPS = tuple(Mistake(slip=(column, by)) for column in (0, 1) for by in (-1, 1))  # off by one, off by ten
WILD_SLIPS = tuple(Mistake(slip=(column, by)) for column in (0, 1) for by in range(-9, 10) if abs(by) > 1)


def _mistakes(num_operations: int, rng: Random) -> Iterator[tuple[Mistake, int]]:
    """Yield mistakes, each with the index of the operation that it happens in."""
    for mistakes in (LIKELIEST, LIKELY, SLIPS, WILD_SLIPS):
        choices = list(product(mistakes, range(num_operations)))
        yield from rng.sample(choices, len(choices))


def _work(problem: Problem, at: int = 0, mistake: Mistake = RIGHT) -> Solution:
    """Solve from left to right, with the mistake in operation ``at``."""
    value, sentences = problem.numbers[0], []
    for index, (sign, number) in enumerate(zip(problem.signs, problem.numbers[1:], strict=True)):
        current = mistake if index == at else RIGHT
        sign = current.sign or sign
        columns, result = _operate(value, sign, number, current)
        sentences.append(f"{value}{sign}{number}: {', '.join(columns)}.")
        value = result
    return Solution(" ".join(sentences), str(value))


CARRY = {"due": lambda due: due, "never": lambda due: 0, "always": lambda due: max(1, due)}


def _operate(left: int, sign: str, right: int, mistake: Mistake) -> tuple[list[str], int]:
    """Work one operation: the columns as written, and the number that they give.

    Raises:
        ValueError: The result would be negative, or the mistake has no column to happen in or gives no digit.
    """
    width = len(str(left)) if sign == "*" else max(len(str(left)), len(str(right)))
    slip_column, slip_by = mistake.slip
    if max(slip_column, mistake.left_out or 0) >= width or (sign == "-" and left < right and not mistake.swapped):
        raise ValueError(f"no such mistake in {left}{sign}{right}")
    columns, digits, carry = [], [], 0
    for column in range(width):
        if column == mistake.left_out:
            continue
        upper = left // 10**column % 10
        lower = right if sign == "*" else right // 10**column % 10
        text, total, carry = _column(upper, sign, lower, carry, mistake)
        total += slip_by * (column == slip_column)
        if total < 0 or (sign == "-" and total > 9):
            raise ValueError(f"no such slip in {left}{sign}{right}")
        if sign != "-":
            carry = CARRY[mistake.carry](total // 10)
        columns.append(f"{text}={total}")
        digits.append(total)
    *lower_digits, top = digits
    return columns, top * 10 ** len(lower_digits) + sum(d % 10 * 10**column for column, d in enumerate(lower_digits))


def _column(upper: int, sign: str, lower: int, carry: int, mistake: Mistake) -> tuple[str, int, int]:
    """A column's left-hand side as written, its value, and the borrow that it takes from the next."""
    if sign == "*":
        return f"{upper}*{lower}" + f"+{carry}" * (carry > 0), upper * lower + carry, 0
    if sign == "+":
        return f"{upper}+{lower}" + f"+{carry}" * (carry > 0), upper + lower + carry, 0
    if mistake.swapped and upper < lower:
        upper, lower = lower, upper
    borrow = int(upper - carry < lower)
    text = f"{upper + 10 * borrow}" + f"-{carry}" * (carry > 0) + f"-{lower}"
    return text, upper + 10 * borrow - carry - lower, CARRY[mistake.carry](borrow)
