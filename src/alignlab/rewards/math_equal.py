"""Whether an answer is mathematically the right one, by the library math-verify."""

import importlib.util

from alignlab.errors import InputError
from alignlab.rewards.exact_answer import final_answer


class MathEqual:
    """1 where the marked answer equals that of a column as an expression (``1/2`` is ``0.5``), else 0.

    Args:
        column: Of the right answer, alone or as a worked solution that marks it.

    Raises:
        InputError: math-verify is not installed.
    """

    def __init__(self, *, column: str):
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("math_equal", "math-verify is not installed", "Type pip install 'alignlab[math]'")
        self.column = column

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """One number per completion; None where the right answer cannot be read."""
        return [self._compare(text, str(right)) for text, right in zip(completions, columns[self.column], strict=True)]

    @staticmethod
    def _compare(text: str, right: str) -> float | None:
        from math_verify import parse, verify

        # No time limits of its own: they need the main thread, and the scorer has one.
        gold = parse(f"${final_answer(right) or right}$", parsing_timeout=None)
        given = final_answer(text)
        if not gold:
            return None
        found = parse(f"${given}$" if given is not None else text, parsing_timeout=None)
        return float(verify(gold, found, timeout_seconds=None))
