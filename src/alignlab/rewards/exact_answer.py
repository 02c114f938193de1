"""Whether a completion's final answer is the right one."""

import re

# In the order of preference: a tagged answer, GSM8K's mark, the last number of the text.
ANSWER_FORMS = (
    re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL),
    re.compile(r"####\s*(\S.*?)\s*$", re.MULTILINE),
    re.compile(r"(-?\d[\d,]*(?:\.\d+)?)(?!.*\d)", re.DOTALL),
)


def final_answer(text: str) -> str | None:
    """The final answer that a text gives, or ``None``.

    Args:
        text: A completion, or a worked solution of the data.
    """
    for form in ANSWER_FORMS:
        found = form.findall(text)
        if found:
            return found[-1]
    return None


def exact_answer(completion: str, answer: str) -> float:
    """1 where the final answers agree, as numbers where both are numbers; else 0.

    Args:
        completion: What the model wrote.
        answer: The right answer alone, or a worked solution that ends in it.
    """
    given, right = final_answer(completion), final_answer(str(answer)) or str(answer)
    return float(given is not None and _canonical(given) == _canonical(right))


def _canonical(answer: str) -> str | float:
    plain = answer.strip().replace(",", "").lstrip("$")
    try:
        return float(plain)
    except ValueError:
        return plain
