"""Rewards of the text alone: an integer answer, a pattern, length and repetition."""

import math
import re
from collections import Counter
from typing import Annotated

from pydantic import Field

from alignlab.errors import InputError
from alignlab.rewards.exact_answer import final_answer
from alignlab.rewards.own_process import OwnProcessReward, TimeUp, time_limit

INTEGER = re.compile(r"-?\d+")


class IntegerAnswer:
    """1 if the marked answer is an integer, else 0."""

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """Return one number per completion."""
        return [float(INTEGER.fullmatch((final_answer(text) or "").strip()) is not None) for text in completions]


class Pattern(OwnProcessReward):
    """1 if a regular expression matches in the completion, else 0; NaN if the search takes too long.

    Args:
        pattern: Regular expression in Python's syntax; ``.`` also matches line breaks.
        whole: Whether it must match the whole completion.

    Raises:
        InputError: It is not a regular expression.
    """

    def __init__(self, *, pattern: str, whole: bool):
        try:
            self.compiled, self.whole = re.compile(pattern, re.DOTALL), whole
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"pattern={pattern}", f"it is not a regular expression: {error}", "Correct it") from error

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """Return one number per completion."""
        return [self._match(text) for text in completions]

    def _match(self, text: str) -> float:
        match = self.compiled.fullmatch if self.whole else self.compiled.search
        try:
            with time_limit():
                return float(match(text) is not None)
        except TimeUp:
            return math.nan


class Length:
    """Minus the number of completion tokens over ``max_tokens``: shorter is better.

    Args:
        max_tokens: Length in tokens whose reward is -1.
    """

    def __init__(self, *, max_tokens: Annotated[int, Field(ge=1)]):
        self.max_tokens = max_tokens

    def __call__(self, completions: list[str], prompts: list, *, num_tokens: list[int], **columns: list) -> list[float]:
        """Return one number per completion, 0 or less."""
        return [-count / self.max_tokens for count in num_tokens]


class OverLength:
    """0 up to a length, then a linear decrease to -1 at the limit (DAPO, arXiv 2503.14476, eq. 13).

    Args:
        max_tokens: Limit in tokens, at which the reward is -1.
        soft_tokens: Number of tokens before the limit over which the reward decreases.
    """

    def __init__(self, *, max_tokens: Annotated[int, Field(ge=1)], soft_tokens: Annotated[int, Field(ge=1)]):
        self.start, self.soft_tokens = max_tokens - soft_tokens, soft_tokens

    def __call__(self, completions: list[str], prompts: list, *, num_tokens: list[int], **columns: list) -> list[float]:
        """Return one number per completion, -1 to 0."""
        return [-min(max(count - self.start, 0) / self.soft_tokens, 1.0) for count in num_tokens]


class Repetition:
    """Minus the share of n-grams of words that repeat an earlier one (arXiv 2502.03373, appendix).

    Args:
        ngram_size: Number of words in an n-gram.
    """

    def __init__(self, *, ngram_size: Annotated[int, Field(ge=1)]):
        self.ngram_size = ngram_size

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """Return one number per completion, above -1 and at most 0."""
        return [-self._share(text.lower().split()) for text in completions]

    def _share(self, words: list[str]) -> float:
        if len(words) < self.ngram_size:
            return 0.0
        ngrams = Counter(zip(*(words[start:] for start in range(self.ngram_size)), strict=False))
        return 1 - len(ngrams) / ngrams.total()
