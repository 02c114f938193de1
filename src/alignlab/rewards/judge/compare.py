"""A judge that compares two completions of a prompt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.errors import InputError
from alignlab.rewards.judge.rubric import dialogue, open_rubric
from alignlab.rewards.judge.settings import ChatSettings, open_client
from alignlab.rewards.judge.verdicts import Failure, read_better

PLACEHOLDERS = ["completion_1", "completion_2", "prompt"]


@dataclass(frozen=True)
class Comparisons:
    """Results of S comparisons.

    Args:
        outcomes: 1 if the first completion is better, -1 if the second is, 0 for a tie, None if there is no verdict.
            Length S.
        num_contradictions: Number of ties in which the judge chose the same position in both orders.
        failures: Number of questions without a verdict, of two per comparison, by kind (``verdicts.Failure``).
        first_failure: Description of the first one; empty if there is none.
    """

    outcomes: list[int | None]
    num_contradictions: int
    failures: Counter[str]
    first_failure: str


class Comparer:
    """Compares completions, each pair in both orders, since judges prefer a position (arXiv 2306.05685, section 3.4).

    Args:
        chat: The judge, and how it is asked.
        rubric: Name of one of our rubrics, or path of a Jinja file with ``{{ prompt }}``, ``{{ completion_1 }}`` and
            ``{{ completion_2 }}``.
        name: Dotted key of the settings, for errors.

    Raises:
        InputError: There is no such rubric, or the judge does not answer.
    """

    def __init__(self, *, chat: ChatSettings, rubric: str, name: str):
        self.rubric = open_rubric(rubric, PLACEHOLDERS, f"{name}.rubric")
        if others := sorted(self.rubric.variables - {*PLACEHOLDERS}):
            why = f"a comparison has no {', '.join(others)}, but {', '.join(PLACEHOLDERS)}"
            raise InputError(f"{name}.rubric={rubric}", why, "Correct the rubric")
        self.client = open_client(chat, name)

    def compare(self, prompts: Sequence[Any], a: Sequence[str], b: Sequence[str]) -> Comparisons:
        """Compare two completions of each prompt. One is better only if the judge says so in both orders.

        Args:
            prompts: Prompts, as texts or as messages. Length S.
            a: First completion of each prompt. Length S.
            b: Second completion of each prompt. Length S.
        """
        pairs = list(zip(prompts, a, b, strict=True))
        texts = [self._text(*pair) for pair in pairs] + [self._text(prompt, b, a) for prompt, a, b in pairs]
        verdicts = self.client.ask(texts, read_better, seconds=None)
        both = list(zip(verdicts[: len(pairs)], verdicts[len(pairs) :], strict=True))
        failures = [verdict for verdict in verdicts if isinstance(verdict, Failure)]
        return Comparisons(
            outcomes=[_outcome(*pair) for pair in both],
            num_contradictions=sum(pair in ((1, 1), (2, 2)) for pair in both),
            failures=Counter(failure.kind for failure in failures),
            first_failure=failures[0].message if failures else "",
        )

    def _text(self, prompt: Any, first: str, second: str) -> str:
        return self.rubric.render({}, {"prompt": dialogue(prompt), "completion_1": first, "completion_2": second})


def _outcome(verdict: int | Failure, swapped: int | Failure) -> int | None:
    """The outcome of a pair from the better position in both orders."""
    if isinstance(verdict, Failure) or isinstance(swapped, Failure):
        return None
    return {(1, 2): 1, (2, 1): -1}.get((verdict, swapped), 0)
