"""Scores of the widely copied GRPO demo on GSM8K, with its peculiarities, for comparison with results that used it.

The rewards of ``conf/method/reward`` differ: they compare answers as numbers, accept line breaks inside the tags, and
charge for text after the answer once. Here:

1. The right answer is a text: ``1,234`` and ``1234`` differ, and an integer has digits only, so no sign and no comma.
2. In both formats, reasoning and answer are a single line each. The strict one has every tag on a line of its own, and
   the soft one the text of a tag on the line of the tag, so no completion has both.
3. Text after the answer costs twice, and without a closed answer on its own line the whole completion does.
"""

import re

STRICT = re.compile(r"<reasoning>\n.*\n</reasoning>\n<answer>\n.*\n</answer>\n\n?")
SOFT = re.compile(r"<reasoning>.*</reasoning>\s*<answer>.*</answer>")
TAG, COST_PER_CHARACTER = 0.125, 0.001


def correctness(completions: list[str], completion: list[str]) -> list[float]:
    """2 for the right answer, else 0.

    Args:
        completions: Texts of the completions. Length S.
        completion: Worked solution of each row, with its answer after ``####``. Length S.
    """
    return [2.0 * (answer(text) == right_answer(row)) for text, row in zip(completions, completion, strict=True)]


def integer(completions: list[str]) -> list[float]:
    """0.5 for an answer of digits only, else 0."""
    return [0.5 * answer(text).isdigit() for text in completions]


def strict_format(completions: list[str]) -> list[float]:
    """0.5 if the completion is nothing but the four tags and their two texts, each on a line of its own, else 0."""
    return [0.5 * (STRICT.fullmatch(text) is not None) for text in completions]


def soft_format(completions: list[str]) -> list[float]:
    """0.5 if the completion begins with tagged reasoning and a tagged answer, else 0."""
    return [0.5 * (SOFT.match(text) is not None) for text in completions]


def xml_count(completions: list[str]) -> list[float]:
    """0.125 for each tag that stands once on a line of its own, minus the costs of what follows the answer."""
    return [_tags(text) for text in completions]


def answer(text: str) -> str:
    """The text between the last ``<answer>`` and the next ``</answer>``; all of it where there are no tags."""
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def right_answer(solution: str) -> str | None:
    """The text after the first ``####``; None where there is none."""
    _, *rest = solution.split("####")
    return rest[0].strip() if rest else None


def _tags(text: str) -> float:
    score = TAG * ((text.count("<reasoning>\n") == 1) + (text.count("\n</reasoning>\n") == 1))
    if text.count("\n<answer>\n") == 1:
        score += TAG - COST_PER_CHARACTER * len(text.rpartition("\n</answer>\n")[2])
    if text.count("\n</answer>") == 1:
        score += TAG - COST_PER_CHARACTER * (len(text.rpartition("\n</answer>")[2]) - 1)
    return score
