"""How rewards did over a whole rollout and all ranks, and when a run must end because of it.

1. A rollout in which no reward gave a number for any completion teaches nothing: other prompts are sampled instead.
2. After ``max_failed_rollouts`` of these in a row the run ends, and after as many in a row in which one reward failed
   for all completions, though others worked. To have no opinion is no failure of a single reward.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from alignlab.errors import RunError
from alignlab.rewards.answers import Answer

log = logging.getLogger(__name__)

LIMIT = "method.reward_limits.max_failed_rollouts"
ALL = ""
"""Stands for all rewards together where each is counted by its name."""


@dataclass(frozen=True)
class Tally:
    """How a reward did.

    Args:
        asked: Completions that it was asked about.
        numbers: Those for which it gave a number.
        failed: Those for which it failed.
        error: How it failed first; empty where it did not.
    """

    asked: int = 0
    numbers: int = 0
    failed: int = 0
    error: str = ""

    @classmethod
    def of(cls, answer: Answer) -> "Tally":
        """That of one answer."""
        failed = answer.values.count(None)
        numbers = sum(value is not None and value == value for value in answer.values)
        error = answer.told.strip().splitlines()[-1] if failed else ""
        return cls(len(answer.values), numbers, failed, error)

    def __add__(self, other: "Tally") -> "Tally":
        sums = (self.asked + other.asked, self.numbers + other.numbers, self.failed + other.failed)
        return Tally(*sums, self.error or other.error)


def together(shares: Iterable[Mapping[str, Tally]]) -> dict[str, Tally]:
    """Tallies of several answers, or of several ranks, by reward."""
    total: dict[str, Tally] = {}
    for share in shares:
        for name, tally in share.items():
            total[name] = total.get(name, Tally()) + tally
    return total


class Watch:
    """Counts rollouts in a row in which rewards failed.

    Args:
        max_failed_rollouts: How many end the run.
    """

    def __init__(self, max_failed_rollouts: int):
        self.max_failed_rollouts = max_failed_rollouts
        self.in_a_row: Counter[str] = Counter()
        self.errors: dict[str, str] = {}

    def is_scored(self, tallies: Mapping[str, Tally]) -> bool:
        """Whether a rollout can be learned from: some reward gave a number.

        Args:
            tallies: Of the whole rollout, the same on all ranks.

        Raises:
            RunError: It was the last of ``max_failed_rollouts``.
        """
        scored = any(tally.numbers for tally in tallies.values())
        bad = {name for name, tally in tallies.items() if tally.failed == tally.asked} | (set() if scored else {ALL})
        self.in_a_row = Counter({name: self.in_a_row[name] + 1 for name in bad})
        self.errors = {name: self.errors.get(name) or tallies[name].error for name in bad - {ALL}}
        if not scored:
            log.warning("no reward scored any completion of this rollout; sampling others")
        ended = [name for name in sorted(bad) if self.in_a_row[name] >= self.max_failed_rollouts]
        if ended:
            raise self._error(ended, tallies)
        return scored

    def _error(self, ended: list[str], tallies: Mapping[str, Tally]) -> RunError:
        number = self.max_failed_rollouts
        if ALL in ended:
            each = [f"{name} {self._how(name, tally)}" for name, tally in tallies.items()]
            why = f"no reward scored any completion of {number} rollouts in a row; {'; '.join(each)}"
        else:
            how = f"failed for all completions of {number} rollouts in a row"
            why = "; ".join(f"{name} {how} (at first: {self.errors[name]})" for name in ended)
        instead = f"Mend the reward and resume the run, or raise {LIMIT}"
        return RunError(f"method.reward=[{', '.join(tallies)}]", why, instead)

    def _how(self, name: str, tally: Tally) -> str:
        first = self.errors.get(name) or tally.error
        return f"failed (at first: {first})" if first else "had no opinion"
