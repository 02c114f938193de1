"""Whether a completion is written as asked: ``<reasoning>…</reasoning>`` and then ``<answer>…</answer>``."""

import re
from typing import Literal, NamedTuple


class Form(NamedTuple):
    """A form as what it begins with, what stands in its middle, and what it ends with; blanks around it do not count.

    A single expression with two texts of any length in it would take time quadratic in the completion.
    """

    start: str
    middle: re.Pattern[str]
    end: str

    def fits(self, text: str) -> bool:
        """Whether a text is written so."""
        text = text.strip()
        inner = len(text) - len(self.end)
        if not (text.startswith(self.start) and text.endswith(self.end) and len(self.start) <= inner):
            return False
        return self.middle.search(text, len(self.start), inner) is not None


FORMS = {
    "strict": Form("<reasoning>\n", re.compile(r"\n</reasoning>\n<answer>\n"), "\n</answer>"),
    "soft": Form("<reasoning>", re.compile(r"</reasoning>\s*<answer>"), "</answer>"),
}

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
CREDIT_PER_TAG = 0.125
COST_PER_CHARACTER_BEHIND = 0.001


class XMLFormat:
    """1 where the whole completion has the form, else 0.

    Args:
        form: ``strict`` wants every tag on a line of its own, ``soft`` the tags in their order.
    """

    def __init__(self, *, form: Literal["strict", "soft"]):
        self.form = FORMS[form]

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """One number per completion."""
        return [float(self.form.fits(text)) for text in completions]


class XMLTags:
    """An eighth for each of the four tags that stands there exactly once, less what stands behind the last."""

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """At most 0.5 per completion."""
        return [self._credit(text) for text in completions]

    @staticmethod
    def _credit(text: str) -> float:
        credit = CREDIT_PER_TAG * sum(text.count(tag) == 1 for tag in TAGS)
        _, end, behind = text.rpartition(TAGS[-1])
        return credit - (COST_PER_CHARACTER_BEHIND * len(behind.strip()) if end else 0.0)
