"""Whether a completion's final answer is the right one."""

import re
from collections.abc import Mapping

OPENS, CLOSES, MARK = "<answer>", "</answer>", "####"
NOT_BLANK = re.compile(r"\S")
NUMBER = re.compile(r"(?<![\w.,/-])-?\$?\d[\d,]*(?:\.\d+)?(?![\w/])")


def final_answer(text: str) -> str | None:
    """The final answer that a text marks as such: the last ``<answer>``, or what follows GSM8K's ``####``.

    Args:
        text: A completion, or a worked solution of the data.
    """
    tagged = last_tagged(text)
    return last_marked(text) if tagged is None else tagged


def last_tagged(text: str) -> str | None:
    """What stands in the last ``<answer>…</answer>``, without blanks around it; in time linear in the text."""
    found, place = None, 0
    while (start := text.find(OPENS, place)) >= 0:
        end = text.find(CLOSES, start + len(OPENS))
        if end < 0:
            break
        found, place = text[start + len(OPENS) : end].strip(), end + len(CLOSES)
    return found


def last_marked(text: str) -> str | None:
    """What follows the last ``####``, behind any blanks up to the end of its line; in time linear in the text."""
    found, place = None, 0
    while (mark := text.find(MARK, place)) >= 0:
        first = NOT_BLANK.search(text, mark + len(MARK))
        if first is None:
            break
        end = text.find("\n", first.start())
        found = text[first.start() : end if end >= 0 else None].rstrip()
        place = first.start() + len(found)
    return found


def exact_answer(completion: str, answer: str) -> float:
    """1 where the final answers agree, as numbers where both are numbers; else 0.

    A completion that marks no answer is taken as a whole; where the right answer is a bare number, by its last number.

    Args:
        completion: What the model wrote.
        answer: The right answer alone, or a worked solution that marks it.
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
    """``exact_answer`` against a column of the row.

    Args:
        column: Of the right answer.
    """

    def __init__(self, *, column: str):
        self.column = column

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float | None]:
        """1 or 0 for each completion; None where the row has no right answer."""
        pairs = zip(completions, right_answers(columns, self.column), strict=True)
        return [None if answer is None else exact_answer(text, answer) for text, answer in pairs]


def right_answers(columns: Mapping[str, list], column: str) -> list:
    """The column of the right answers.

    Raises:
        KeyError: No row has it.
    """
    if column not in columns:
        raise KeyError(f"no row has a column {column!r}; there are {', '.join(sorted(columns))}")
    return columns[column]
