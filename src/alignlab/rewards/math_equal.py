"""Reward for a mathematically equal answer, by the library math-verify."""

import importlib.util
import math

from alignlab.errors import InputError
from alignlab.rewards.exact_answer import final_answer, right_answers
from alignlab.rewards.own_process import OwnProcessReward, TimeUp, time_limit


class MathEqual(OwnProcessReward):
    """1 if the marked answer equals that of a column as an expression (``1/2`` is ``0.5``), else 0.

    Args:
        column: Name of the column of right answers, or of worked solutions that mark them.

    Raises:
        InputError: math-verify is not installed.
    """

    def __init__(self, *, column: str):
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("math_equal", "math-verify is not installed", "Type pip install 'alignlab[math]'")
        self.column = column

    @property
    def needs(self) -> set[str]:
        """Its column."""
        return {self.column}

    def prepare(self) -> None:
        """Import the library, which takes a second."""
        importlib.import_module("math_verify")

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """One number per completion; None if the row has no right answer that can be parsed, NaN after a timeout."""
        pairs = zip(completions, right_answers(columns, self.column), strict=True)
        return [None if right is None else self._compare(text, str(right)) for text, right in pairs]

    @staticmethod
    def _compare(text: str, right: str) -> float | None:
        from math_verify import parse, verify

        try:
            # The library's own time limits would replace our alarm signal, and each other's.
            with time_limit():
                gold = parse(f"${final_answer(right) or right}$", parsing_timeout=None)
                given = final_answer(text)
                if not gold:
                    return None
                found = parse(f"${given}$" if given is not None else text, parsing_timeout=None)
                return float(verify(gold, found, timeout_seconds=None))
        except TimeUp:
            return math.nan
