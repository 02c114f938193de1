"""Counts of the successes and failures of rewards over a rollout and all ranks, and the rules that end a run.

1. A rollout in which no reward gives a number for any completion is not trained on; other prompts are sampled instead.
2. The run ends after ``max_failed_rollouts`` such rollouts in a row, and also after as many in a row in which a single
   reward fails for all completions. Returning None is not a failure.
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
"""Key that counts all rewards together, where others are counted by name."""


@dataclass(frozen=True)
class RewardCounts:
    """Counts of one reward.

    Args:
        asked: Number of completions that it was called with.
        numbers: Number of completions for which it gave a number.
        failed: Number of completions for which it failed.
        error: Its first error; empty if it did not fail.
    """

    asked: int = 0
    numbers: int = 0
    failed: int = 0
    error: str = ""

    @classmethod
    def of(cls, answer: Answer) -> "RewardCounts":
        """Count one answer."""
        failed = answer.values.count(None)
        numbers = sum(value is not None and value == value for value in answer.values)
        error = answer.message.strip().splitlines()[-1] if failed else ""
        return cls(len(answer.values), numbers, failed, error)

    def __add__(self, other: "RewardCounts") -> "RewardCounts":
        sums = (self.asked + other.asked, self.numbers + other.numbers, self.failed + other.failed)
        return RewardCounts(*sums, self.error or other.error)


def merge_counts(shares: Iterable[Mapping[str, RewardCounts]]) -> dict[str, RewardCounts]:
    """Sum the counts of several answers, or of several ranks, by reward."""
    total: dict[str, RewardCounts] = {}
    for share in shares:
        for name, count in share.items():
            total[name] = total.get(name, RewardCounts()) + count
    return total


class FailureLimit:
    """Counts consecutive rollouts in which rewards failed, and ends the run after too many.

    Args:
        max_failed_rollouts: Number of failed rollouts in a row that ends the run.
    """

    def __init__(self, max_failed_rollouts: int):
        self.max_failed_rollouts = max_failed_rollouts
        self.in_a_row: Counter[str] = Counter()
        self.errors: dict[str, str] = {}

    def is_scored(self, counts: Mapping[str, RewardCounts]) -> bool:
        """Count a rollout, and return whether any reward gave a number for it.

        Args:
            counts: Counts of each reward over the whole rollout, the same on all ranks.

        Raises:
            RunError: It was the last of ``max_failed_rollouts`` failed rollouts in a row.
        """
        scored = any(count.numbers for count in counts.values())
        bad = {name for name, count in counts.items() if count.failed == count.asked} | (set() if scored else {ALL})
        self.in_a_row = Counter({name: self.in_a_row[name] + 1 for name in bad})
        self.errors = {name: self.errors.get(name) or counts[name].error for name in bad - {ALL}}
        if not scored:
            log.warning("no reward scored any completion of this rollout; sampling others")
        ended = [name for name in sorted(bad) if self.in_a_row[name] >= self.max_failed_rollouts]
        if ended:
            raise self._error(ended, counts)
        return scored

    def _error(self, ended: list[str], counts: Mapping[str, RewardCounts]) -> RunError:
        number = self.max_failed_rollouts
        if ALL in ended:
            each = [f"{name} {self._how(name, count)}" for name, count in counts.items()]
            why = f"no reward scored any completion of {number} rollouts in a row; {'; '.join(each)}"
        else:
            how = f"failed for all completions of {number} rollouts in a row"
            why = "; ".join(f"{name} {how} (at first: {self.errors[name]})" for name in ended)
        instead = f"Correct the reward and resume the run, or raise {LIMIT}"
        return RunError(f"method.reward=[{', '.join(counts)}]", why, instead)

    def _how(self, name: str, count: RewardCounts) -> str:
        first = self.errors.get(name) or count.error
        return f"failed (at first: {first})" if first else "had no opinion"
