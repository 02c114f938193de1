"""Answers of every kind: numbers are read, whatever holds them; all else is a failure of that reward, never a crash."""

import math
from collections import UserList, deque

import numpy as np
import pytest
import torch

from alignlab.rewards.answers import MAX_MESSAGE_CHARACTERS, ask, read

NUMBERS = [1.0, 0.0, -2.5]
HUGE = 10**400


class Raising:
    """Raises whatever is asked of it."""

    def __float__(self):
        raise SystemExit("no number")

    def __len__(self):
        raise RuntimeError("no length")

    def __iter__(self):
        raise RuntimeError("no list")

    def __repr__(self):
        raise RuntimeError("no text")


class BadNumber:
    """Looks like a number and is none."""

    def __init__(self, error):
        self.error = error

    def __float__(self):
        if self.error is None:
            return "1.0"
        raise self.error


class Liar(list):
    """Says that it is longer than it is."""

    def __len__(self):
        return 100


def endless():
    while True:
        yield 1.0


@pytest.mark.parametrize(
    "make",
    [
        list, tuple, deque, UserList, Liar, iter, np.array, torch.tensor, lambda numbers: (value for value in numbers),
        lambda numbers: map(float, numbers), lambda numbers: np.array(numbers, dtype=np.float16),
        lambda numbers: torch.tensor(numbers, requires_grad=True), lambda numbers: torch.tensor(numbers).bfloat16(),
        lambda numbers: [np.array(value) for value in numbers], lambda numbers: iter(dict.fromkeys(numbers)),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
def test_what_holds_the_right_number_of_numbers_is_read(make):
    answer = read(make(NUMBERS), 3)
    assert answer.values == NUMBERS and not answer.failure


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "gave a NoneType"), (1.0, "gave a float"), ("abc", "gave a str"), (b"abc", "gave a bytes"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "gave a dict"), ({1.0, 2.0, 3.0}, "gave a set"), (np.array(1.0), "gave a ndarray"),
        (torch.tensor(1.0), "gave a Tensor"), (object(), "gave a object"), (len, "gave a builtin"),
        ([], "gave 0 numbers"), (iter([1.0]), "gave 1 numbers"), (np.zeros((2, 3)), "gave 2 numbers"),
        ([1.0] * 4, "gave more"), (endless(), "gave more"), (range(10**12), "gave more"),
    ],
)  # fmt: skip
def test_what_does_not_is_a_wrong_length(answer, told):
    found = read(answer, 3)
    assert found.values == [None] * 3 and found.failure == "wrong_length" and told in found.message


@pytest.mark.parametrize(
    "value",
    [
        HUGE, -HUGE, math.inf, -math.inf, math.nan, "1", b"1", 1j, [1.0], {}, object(), np.array([1.0, 2.0]),
        torch.ones(2), np.datetime64("2020-01-01"), BadNumber(None), BadNumber(ValueError("no")), BadNumber(KeyError()),
        BadNumber(RecursionError()), BadNumber(MemoryError()),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_finite_number_fails_for_its_completion_alone(value):
    answer = ask(lambda *texts: [1.0, value, None], ["a", "b", "c"], [[]] * 3, {}, 0)
    assert answer.values[:2] == [1.0, None] and math.isnan(answer.values[2])
    assert answer.failure == "not_finite" and "for 1 of 3 completions" in answer.message


@pytest.mark.parametrize("answer", [Raising(), [1.0, 1.0, Raising()], (1 / 0 for _ in range(3))])
def test_what_raises_while_it_is_read_has_failed(answer):
    found = ask(lambda *texts: answer, ["a", "b", "c"], [[]] * 3, {}, 0)
    assert found.values == [None] * 3 and found.failure == "failed"


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), Exception("x" * 10**6)])
def test_whatever_a_reward_raises_is_a_failure(error):
    def reward(completions, prompts):
        raise error

    answer = ask(reward, ["a"], [[]], {}, 1)
    assert answer.failure == "failed" and len(answer.message) <= MAX_MESSAGE_CHARACTERS


def test_a_reward_gets_copies():
    """Also the second call, after the first had spoiled its own and raised."""
    completions, prompts, columns = ["a"], [[{"role": "user", "content": "b"}]], {"answer": [["1"]]}
    seen = []

    def reward(completions, prompts, answer):
        seen.append((completions[0], prompts[0][0]["content"], answer[0][0]))
        completions[0], prompts[0][0]["content"], answer[0][0] = "x", "y", "z"
        raise RuntimeError

    ask(reward, completions, prompts, columns, 1)
    assert seen == [("a", "b", "1")] * 2
    assert (completions, prompts[0][0]["content"], columns) == (["a"], "b", {"answer": [["1"]]})
