"""Reward for the right final answer of a completion."""

import re
from collections.abc import Mapping

OPENS, CLOSES, MARK = "<answer>", "</answer>", "####"
NOT_BLANK = re.compile(r"\S")
NUMBER = re.compile(r"(?<![\w.,/-])-?\$?\d[\d,]*(?:\.\d+)?(?![\w/])")


def final_answer(text: str) -> str | None:
    """Find the marked final answer of a text: the last ``<answer>``, or the text after GSM8K's ``####``.

    Args:
        text: A completion, or a worked solution of the data.
    """
    tagged = last_tagged(text)
    return last_marked(text) if tagged is None else tagged


def last_tagged(text: str) -> str | None:
    """Text inside the last ``<answer>…</answer>``, without surrounding blanks; found in linear time."""
    found, position = None, 0
    while (start := text.find(OPENS, position)) >= 0:
        end = text.find(CLOSES, start + len(OPENS))
        if end < 0:
            break
        found, position = text[start + len(OPENS) : end].strip(), end + len(CLOSES)
    return found


def last_marked(text: str) -> str | None:
    """Text from the first non-blank after the last ``####`` to the end of its line; found in linear time."""
    found, position = None, 0
    while (mark := text.find(MARK, position)) >= 0:
        first = NOT_BLANK.search(text, mark + len(MARK))
        if first is None:
            break
        end = text.find("\n", first.start())
        found = text[first.start() : end if end >= 0 else None].rstrip()
        position = first.start() + len(found)
    return found


def exact_answer(completion: str, answer: str) -> float:
    """1 if the final answers are equal, else 0. They are compared as numbers if both are numbers.

    For a completion that marks no answer, its last number is compared if the right answer is a number, and otherwise
    the whole completion.

    Args:
        completion: Text of the completion.
        answer: The right answer, or a worked solution that marks it.
    """
    right = _canonical(final_answer(str(answer)) or str(answer))
    given = final_answer(completion)
    if given is None:
        numbers = NUMBER.findall(completion) if isinstance(right, float) else []
        given = numbers[-1] if numbers else completion
    return float(_canonical(given) == right)


def _canonical(answer: str) -> str | float:
    plain = answer.strip().rstrip(".").replace(",", "").replace("$", "")
    try:
        return float(plain)
    except ValueError:
        return " ".join(answer.split()).casefold()


class ExactAnswer:
    """Compares completions with a column of the row by ``exact_answer``.

    Args:
        column: Name of the column of right answers.
    """

    def __init__(self, *, column: str):
        self.column = column
        self.needs = {column}

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """Return 1 or 0 per completion; None if the row has no right answer."""
        pairs = zip(completions, right_answers(columns, self.column), strict=True)
        return [None if answer is None else exact_answer(text, answer) for text, answer in pairs]


def right_answers(columns: Mapping[str, list], column: str) -> list:
    """Return the column of right answers.

    Raises:
        KeyError: No row has the column.
    """
    if column not in columns:
        raise KeyError(f"no row has a column {column!r}; there are {', '.join(sorted(columns))}")
    return columns[column]
