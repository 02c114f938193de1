"""When rewards that fail end a run."""

import math
import re

import pytest

from alignlab.errors import RunError
from alignlab.rewards.answers import Answer, failed_answer
from alignlab.rewards.counts import FailureLimit, RewardCounts, merge_counts

WORKS = RewardCounts.of(Answer([1.0, math.nan, None], "not_finite", "it gave no number"))
FAILS = RewardCounts.of(failed_answer(3, "failed", "Traceback\nOSError: nobody there"))
SILENT = RewardCounts.of(Answer([math.nan] * 3))


def test_counts_of_numbers_and_failures():
    assert RewardCounts(3, 1, 1, "it gave no number") == WORKS
    assert RewardCounts(3, 0, 3, "OSError: nobody there") == FAILS
    assert RewardCounts(3, 0, 0, "") == SILENT


def test_ranks_are_added_up():
    """The third rank had no prompt."""
    total = merge_counts([{"a": FAILS, "b": SILENT}, {"a": WORKS, "b": SILENT}, {}])
    assert total == {"a": RewardCounts(6, 1, 4, "OSError: nobody there"), "b": RewardCounts(6, 0, 0)}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": FAILS}, "no reward scored any completion of 3 rollouts in a row; a failed (at first: OSError"),
        ({"a": SILENT}, "no reward scored any completion of 3 rollouts in a row; a had no opinion"),
        ({"a": FAILS, "b": SILENT}, "a failed (at first: OSError: nobody there); b had no opinion"),
        ({"a": FAILS, "b": WORKS}, "a failed for all completions of 3 rollouts in a row (at first: OSError"),
    ],
)
def test_so_many_in_a_row_end_the_run(counts, said):
    limit = FailureLimit(3)
    assert [limit.is_scored(counts) for _ in range(2)] == ["b" in counts and counts["b"] is WORKS] * 2
    with pytest.raises(RunError, match=re.escape(said)):
        limit.is_scored(counts)


def test_one_that_works_in_between_starts_the_count_anew():
    limit = FailureLimit(3)
    rounds = [FAILS, FAILS, WORKS] * 3
    assert [limit.is_scored({"a": count}) for count in rounds] == [False, False, True] * 3


def test_a_reward_may_have_no_opinion_for_ever_beside_one_that_has():
    limit = FailureLimit(1)
    assert all(limit.is_scored({"a": SILENT, "b": WORKS}) for _ in range(9))


def test_the_first_error_of_the_row_is_told():
    limit = FailureLimit(2)
    limit.is_scored({"a": FAILS})
    with pytest.raises(RunError, match="nobody there"):
        limit.is_scored({"a": RewardCounts.of(failed_answer(3, "not_called", "5 calls of it hang"))})
