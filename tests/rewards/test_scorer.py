"""Rewards that behave, and rewards that raise, hang, lie about their length or print from a thread."""

import math
import threading
import time

import numpy as np
import pytest
import torch

from alignlab.errors import InputError
from alignlab.rewards.execution import MAX_HANGING_CALLS
from alignlab.rewards.scorer import Limits, Scorer

TEXTS, PROMPTS, COLUMNS = ["a", "bb", "ccc"], [[], [], []], {"answer": ["1", "2", "3"]}
LIMITS = Limits(timeout_seconds=5, num_retries=0, default=None, max_failed_rollouts=3)


def lengths(completions, prompts, **columns):
    return [len(text) for text in completions]


lengths.own_process = False  # its process would import all that this module does


def score(reward, limits=LIMITS):
    return Scorer({"good": lengths, "odd": reward}, [1.0, 2.0], limits)(TEXTS, PROMPTS, COLUMNS)


def test_weighted_sum_skips_who_has_no_opinion():
    """Lengths 1, 2, 3 and twice (0.5, nothing, -1): 2, 2, 1."""
    scores = score(lambda completions, prompts, **columns: [0.5, None, -1.0])
    assert scores.total == [2.0, 2.0, 1.0]
    assert scores.by_name["odd"][0] == 0.5
    assert math.isnan(scores.by_name["odd"][1])
    assert scores.failures == {}


def test_no_opinion_at_all_is_nan():
    scores = Scorer({"none": lambda completions, prompts, **columns: [None] * 3}, None, LIMITS)(TEXTS, PROMPTS, {})
    assert all(math.isnan(total) for total in scores.total)


def test_columns_reach_the_reward():
    scores = score(lambda completions, prompts, answer, **columns: [float(value) for value in answer])
    assert scores.by_name["odd"] == [1.0, 2.0, 3.0]


def test_a_reward_that_raises_is_retried_counted_and_told(caplog, capsys):
    calls = []

    def reward(completions, prompts, **columns):
        calls.append(1)
        raise ZeroDivisionError("no such thing")

    scores = score(reward, Limits(timeout_seconds=5, num_retries=2, default=-1.0, max_failed_rollouts=3))
    assert len(calls) == 3
    assert scores.by_name["odd"] == [-1.0] * 3
    assert scores.failures == {"odd": {"failed": 3}}
    assert "ZeroDivisionError: no such thing" in caplog.text
    assert "Traceback" not in capsys.readouterr().err


def test_a_reward_that_raises_once_is_asked_again():
    answers = iter([RuntimeError("busy"), [1.0, 1.0, 1.0]])

    def reward(completions, prompts, **columns):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    scores = score(reward, Limits(timeout_seconds=5, num_retries=1, default=None, max_failed_rollouts=3))
    assert scores.by_name["odd"] == [1.0] * 3
    assert scores.failures == {}


def test_a_reward_that_hangs_for_a_minute_stalls_nobody(caplog):
    release = threading.Event()
    started = time.monotonic()
    scores = score(
        lambda completions, prompts, **columns: release.wait(60) and [1.0] * 3,
        Limits(timeout_seconds=0.2, num_retries=0, default=0.0, max_failed_rollouts=3),
    )
    assert time.monotonic() - started < 5
    release.set()
    assert scores.total == [1.0, 2.0, 3.0]
    assert scores.failures == {"odd": {"timed_out": 3}}
    assert "no answer within 0.2 s" in caplog.text


def test_a_reward_that_always_hangs_is_not_called_for_ever():
    release, calls = threading.Event(), []

    def reward(completions, prompts, **columns):
        calls.append(1)
        release.wait(60)

    limits = Limits(timeout_seconds=0.01, num_retries=0, default=0.0, max_failed_rollouts=3)
    scorer = Scorer({"odd": reward}, None, limits)
    found = [scorer(TEXTS, PROMPTS, {}).failures["odd"] for _ in range(MAX_HANGING_CALLS + 1)]
    release.set()
    assert len(calls) == MAX_HANGING_CALLS
    assert found[-1] == {"not_called": 3}


@pytest.mark.parametrize("value", [math.nan, math.inf, "2", [1.0]])
def test_what_is_no_finite_number_is_counted(value):
    scores = score(lambda completions, prompts, **columns: [1.0, value, 3.0])
    assert scores.by_name["odd"][::2] == [1.0, 3.0]
    assert math.isnan(scores.by_name["odd"][1])
    assert scores.failures == {"odd": {"not_finite": 1}}
    assert scores.total[1] == 2.0


@pytest.mark.parametrize("make", [np.float32, torch.tensor, bool, int])
def test_numbers_of_arrays_and_tensors_are_numbers(make):
    scores = score(lambda completions, prompts, **columns: [make(1), None, make(0)])
    assert scores.by_name["odd"][::2] == [1.0, 0.0] and not scores.failures


@pytest.mark.parametrize("answer", [[1.0, 2.0], [], None, 3.0])
def test_a_wrong_length_is_counted(answer):
    scores = score(lambda completions, prompts, **columns: answer)
    assert scores.failures == {"odd": {"wrong_length": 3}}
    assert scores.failed == [1, 1, 1]


def test_failures_are_counted_by_completion():
    """One reward fails for all three, another for the second; to have no opinion is no failure."""
    rewards = {
        "raises": lambda completions, prompts, **columns: 1 / 0,
        "odd": lambda completions, prompts, **columns: [1.0, math.nan, None],
    }
    scores = Scorer(rewards, None, LIMITS)(TEXTS, PROMPTS, COLUMNS)
    assert scores.failed == [1, 2, 1]
    assert scores.failures == {"raises": {"failed": 3}, "odd": {"not_finite": 1}}


def test_a_traceback_from_a_reward_s_own_thread_is_its_own(monkeypatch):
    """A thread that a reward starts and that raises changes no score."""
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def reward(completions, prompts, **columns):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        return [1.0] * 3

    scores = score(reward)
    assert scores.by_name["odd"] == [1.0] * 3
    assert scores.failures == {}


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]])
def test_weights_must_fit(weights):
    with pytest.raises(InputError, match="weights"):
        Scorer({"a": lengths, "b": lengths}, weights, LIMITS)
