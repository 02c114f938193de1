"""Whether a completion is written as asked: ``<reasoning>…</reasoning>`` and then ``<answer>…</answer>``."""

import re
from typing import Literal

STRICT = re.compile(r"\s*<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\s*", re.DOTALL)
SOFT = re.compile(r"\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>\s*", re.DOTALL)
FORMS = {"strict": STRICT, "soft": SOFT}

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
CREDIT_PER_TAG = 0.125
COST_PER_CHARACTER_BEHIND = 0.001


class XMLFormat:
    """1 where the whole completion has the form, else 0.

    Args:
        form: ``strict`` wants every tag on a line of its own, ``soft`` the tags in their order.
    """

    def __init__(self, *, form: Literal["strict", "soft"]):
        self.pattern = FORMS[form]

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """One number per completion."""
        return [float(self.pattern.fullmatch(text) is not None) for text in completions]


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
