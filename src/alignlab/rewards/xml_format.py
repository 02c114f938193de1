"""Rewards for the format ``<reasoning>…</reasoning>`` followed by ``<answer>…</answer>``."""

import re
from typing import Literal, NamedTuple


class TagPattern(NamedTuple):
    """A format, given by its beginning, its middle and its end; surrounding blanks are ignored.

    A single regular expression with two texts of any length would take time quadratic in the completion.
    """

    start: str
    middle: re.Pattern[str]
    end: str

    def fits(self, text: str) -> bool:
        """Whether a text has the format."""
        text = text.strip()
        inner = len(text) - len(self.end)
        if not (text.startswith(self.start) and text.endswith(self.end) and len(self.start) <= inner):
            return False
        return self.middle.search(text, len(self.start), inner) is not None


FORMS = {
    "strict": TagPattern("<reasoning>\n", re.compile(r"\n</reasoning>\n<answer>\n"), "\n</answer>"),
    "soft": TagPattern("<reasoning>", re.compile(r"</reasoning>\s*<answer>"), "</answer>"),
}

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
CREDIT_PER_TAG = 0.125
COST_PER_TRAILING_CHARACTER = 0.001


class XMLFormat:
    """1 if the whole completion has the format, else 0.

    Args:
        form: ``strict`` requires every tag on a line of its own; ``soft`` requires the tags in their order.
    """

    def __init__(self, *, form: Literal["strict", "soft"]):
        self.form = FORMS[form]

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """Return one number per completion."""
        return [float(self.form.fits(text)) for text in completions]


class XMLTags:
    """0.125 for each of the four tags that occurs exactly once, minus 0.001 per character after the last tag."""

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """Return one number per completion, at most 0.5."""
        return [self._credit(text) for text in completions]

    @staticmethod
    def _credit(text: str) -> float:
        credit = CREDIT_PER_TAG * sum(text.count(tag) == 1 for tag in TAGS)
        _, end, trailing = text.rpartition(TAGS[-1])
        return credit - (COST_PER_TRAILING_CHARACTER * len(trailing.strip()) if end else 0.0)
