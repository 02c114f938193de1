"""Whether a completion's final answer is the right one."""

import re

TAGGED = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
MARKED = re.compile(r"####\s*(\S.*?)\s*$", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.,/-])-?\$?\d[\d,]*(?:\.\d+)?(?![\w/])")


def final_answer(text: str) -> str | None:
    """The final answer that a text marks as such: the last ``<answer>``, or what follows GSM8K's ``####``.

    Args:
        text: A completion, or a worked solution of the data.
    """
    found = TAGGED.findall(text) or MARKED.findall(text)
    return found[-1] if found else None


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

    def __call__(self, completions: list[str], prompts: list, **columns: list) -> list[float]:
        """1 or 0 for each completion."""
        return [exact_answer(text, answer) for text, answer in zip(completions, columns[self.column], strict=True)]
