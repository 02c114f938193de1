"""Problems: operands and signs by level, and the split that each problem belongs to."""

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "validation"]

VALIDATION_SHARE = 10
"""One problem in this many is held out."""


@dataclass(frozen=True)
class Problem:
    """A chain of operations, evaluated from left to right; every intermediate result is at least 0.

    Args:
        numbers: The operands, one more than there are signs.
        signs: ``+``, ``-`` or ``*``; a ``*`` comes first, so that precedence and reading order agree.
    """

    numbers: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def split(self) -> Split:
        """The split of the problem. It depends on the numbers and signs alone, not on wording, seed or level.

        ``47 + 38`` and ``38 + 47`` are the same problem.
        """
        first, second, *rest = self.numbers
        if self.signs[0] != "-":
            first, second = sorted((first, second))
        content = f"{self.signs} {first} {second} {rest}".encode()
        held_out = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) % VALIDATION_SHARE == 0
        return "validation" if held_out else "train"


@dataclass(frozen=True)
class Form:
    """A shape of problem: its signs, and the smallest and largest value of every operand."""

    signs: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]


ONE, TWO, THREE = (2, 9), (10, 99), (100, 999)

LEVELS: dict[int, tuple[Form, ...]] = {
    1: (Form(("+",), (TWO, ONE)), Form(("-",), (TWO, ONE))),
    2: (Form(("+",), (TWO, TWO)), Form(("-",), (TWO, TWO))),
    3: (Form(("+",), (TWO, TWO)), Form(("-",), (TWO, TWO)), Form(("*",), (TWO, ONE))),
    4: (Form(("+",), (THREE, THREE)), Form(("-",), (THREE, THREE)), Form(("*",), (THREE, ONE))),
    5: tuple(Form((first, second), (TWO, TWO if first != "*" else ONE, TWO)) for first in "+-*" for second in "+-"),
}
"""Forms by level: one digit, two digits, products, three digits, two operations."""


def draw(level: int, split: Split, rng: Random) -> Problem:
    """Draw a random problem of a level and a split.

    Args:
        level: A key of ``LEVELS``.
        split: The split that the problem must belong to.
        rng: Random generator; equal states give the same problem.
    """
    while True:
        form = rng.choice(LEVELS[level])
        problem = Problem(tuple(rng.randint(*limits) for limits in form.ranges), form.signs)
        if problem.split == split and _never_negative(problem):
            return problem


def _never_negative(problem: Problem) -> bool:
    value = problem.numbers[0]
    for sign, number in zip(problem.signs, problem.numbers[1:], strict=True):
        value = {"+": value + number, "-": value - number, "*": value * number}[sign]
        if value < 0:
            return False
    return True
