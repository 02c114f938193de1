"""The embedded data: same seed same rows, right answers right, wrong ones wrong, no problem on both sides."""

import re
from itertools import islice
from random import Random

import pytest

from alignlab.data.sources.arithmetic import Arithmetic
from alignlab.data.sources.arithmetic.problems import LEVELS, Problem, draw
from alignlab.data.sources.arithmetic.solutions import solve, wrong_solutions
from alignlab.data.sources.arithmetic.wording import word
from alignlab.types.rows import Demonstration, Preference, Prompt, Text, Unpaired

SETTINGS = {"level": 2, "kind": "demonstration", "num_train": 40, "num_validation": 40, "num_rejected": 1}
SETTINGS |= {"mistakes": 0.0, "seed": 0}
KINDS = {"demonstration": Demonstration, "preference": Preference, "unpaired": Unpaired, "prompt": Prompt, "text": Text}
FORM = re.compile(r"<reasoning>(.+)</reasoning><answer>(\d+)</answer>")


def make(**changes):
    return Arithmetic(**{**SETTINGS, **changes})


def answer_of(text):
    return FORM.fullmatch(text)[2]


def result(problem):
    """The answer by Python's own arithmetic, from left to right."""
    text = "(" * len(problem.signs) + str(problem.numbers[0])
    return eval(text + "".join(f"{s}{n})" for s, n in zip(problem.signs, problem.numbers[1:], strict=True)))


def understand(question):
    """Reads a question as a pupil would, knowing nothing of how it was made: numbers in order, and what happens."""
    numbers = re.findall(r"\d+", question)
    if "*" in question or "+" in question or "-" in question:
        return eval(re.search(r"\d[\d +*-]*", question)[0])
    clauses = [clause for clause in re.split(r"(?<=\.) ", question) if re.search(r"\d", clause)]
    assert len(re.findall(r"\d+", " ".join(clauses))) == len(numbers)
    values = [int(number) for number in re.findall(r"\d+", clauses[0])]
    total = values[0] * values[1] if len(values) == 2 else values[0]
    for clause in clauses[1:]:
        amount = int(re.search(r"\d+", clause)[0])
        total += amount if clause.endswith("more.") else -amount
    return total


@pytest.fixture(params=LEVELS, ids="level {}".format)
def level(request):
    return request.param


def test_worked_by_hand():
    assert str(solve(Problem((47, 38), ("+",)))) == (
        "<reasoning>47+38: 7+8=15, 4+3+1=8.</reasoning><answer>85</answer>"
    )
    assert solve(Problem((85, 38), ("-",))).reasoning == "85-38: 15-8=7, 8-1-3=4."
    assert solve(Problem((57, 8), ("*",))).reasoning == "57*8: 7*8=56, 5*8+5=45."
    chain = solve(Problem((12, 9, 50), ("*", "-")))
    assert (chain.reasoning, chain.answer) == ("12*9: 2*9=18, 1*9+1=10. 108-50: 8-0=8, 10-5=5, 1-1-0=0.", "58")


@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        ("47+38", "47+38: 7+8=15, 4+3=7. 75"),  # carry forgotten
        ("47+38", "47+38: 7+8=15, 4+3+1=9. 95"),  # off by ten
        ("47+38", "47+38: 7+8=14, 4+3+1=8. 84"),  # off by one
        ("47+38", "47-38: 17-8=9, 4-1-3=0. 9"),  # wrong operation
        ("85-38", "85-38: 8-5=3, 8-3=5. 53"),  # operands swapped
        ("85-38", "85-38: 15-8=7, 8-3=5. 57"),  # borrow forgotten
        ("57*8", "57*8: 7*8=56, 5*8=40. 406"),  # carry forgotten
    ],
)
def test_weak_pupils_mistakes_are_all_made(problem, wrong):
    sign = re.search(r"\D", problem)[0]
    asked = Problem(tuple(map(int, problem.split(sign))), (sign,))
    # Two mistakes may end in one answer, of which a row shows one only: so several draws.
    found = [solution for seed in range(8) for solution in islice(wrong_solutions(asked, Random(seed)), 8)]
    assert wrong in {f"{solution.reasoning} {solution.answer}" for solution in found}


def test_right_answers_are_right(level):
    for index in range(300):
        rng = Random(index)
        problem = draw(level, "train", rng)
        solution, question = solve(problem), word(problem, rng)
        assert int(solution.answer) == result(problem) == understand(question)
        written = re.findall(r"([\d*+-]+)=(\d+)", solution.reasoning)
        assert len(written) > len(problem.signs) and all(eval(left) == int(right) for left, right in written)


def test_wrong_answers_are_wrong_and_distinct(level):
    for row in make(level=level, kind="preference", num_rejected=16, num_train=100).rows("train"):
        answers = [answer_of(rejected[0]["content"]) for rejected in row.rejected]
        right = answer_of(row.chosen[0]["content"])
        assert len(set(answers)) == 16 and right not in answers and right == row.columns["answer"]


def test_the_likeliest_mistake_is_a_forgotten_carry():
    assert [next(wrong_solutions(Problem((47, 38), ("+",)), Random(seed))).answer for seed in range(5)] == ["75"] * 5
    assert next(wrong_solutions(Problem((85, 38), ("-",)), Random(0))).answer == "57"


def test_a_weak_pupil_is_wrong_as_often_as_asked():
    """Three standard deviations of 1,000 draws at 0.6 are 0.046; whoever is right says what everybody says."""
    pairs = list(zip(*(make(mistakes=m, num_train=1000).rows("train") for m in (0.6, 0.0)), strict=True))
    wrong = [one.messages[-1] != other.messages[-1] for one, other in pairs]
    assert all(one.messages[0] == other.messages[0] and one.columns == other.columns for one, other in pairs)
    assert abs(sum(wrong) / 1000 - 0.6) < 0.046


def test_train_and_validation_share_no_problem(level):
    """Both sides of 500 draws are disjoint, also across seeds, levels and the order of operands."""

    def contents(split, seed):
        rng = Random(seed)
        return {(p.signs, *sorted(p.numbers[:2]), p.numbers[2:]) for p in (draw(level, split, rng) for _ in range(500))}

    train, validation = contents("train", 1), contents("validation", 2)
    assert train and validation and not train & validation


def test_the_split_ignores_order_where_the_result_does():
    for a, b in [(47, 38), (12, 90), (3, 8)]:
        for sign in "+*":
            assert Problem((a, b), (sign,)).split == Problem((b, a), (sign,)).split


def test_a_tenth_of_the_problems_is_held_out():
    sides = [Problem((a, b), ("+",)).split for a in range(10, 100) for b in range(a, 100)]
    assert 0.08 < sides.count("validation") / len(sides) < 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_on_seed_split_and_index_alone(kind):
    few, many = (list(make(kind=kind, num_train=n).rows("train")) for n in (20, 40))
    assert many[:20] == few == list(make(kind=kind, num_train=20).rows("train"))
    assert all(isinstance(row, KINDS[kind]) for row in many)
    assert few != list(make(kind=kind, num_train=20, seed=1).rows("train"))
    assert few != list(make(kind=kind, num_train=20, num_validation=20).rows("validation"))


def test_every_kind_tells_of_the_same_problem():
    rows = {kind: next(make(kind=kind).rows("train")) for kind in KINDS}
    question = rows["prompt"].prompt[0]
    right = rows["preference"].chosen[0]
    assert rows["demonstration"].messages == (question, right)
    assert rows["preference"].prompt == rows["unpaired"].prompt == (question,)
    assert rows["text"].text == f"{question['content']}\n{right['content']}"
    assert len({str(row.columns) for row in rows.values()}) == 1
    assert rows["prompt"].origin == "arithmetic train:1"


def test_verdicts_are_true():
    rows = list(make(kind="unpaired", num_train=200).rows("train"))
    for row in rows:
        assert row.desirable == (answer_of(row.completion[0]["content"]) == row.columns["answer"])
    assert 70 < sum(row.desirable for row in rows) < 130


def test_longer_work_is_harder():
    rows = list(make(num_train=200).rows("train"))
    difficulty = {"+1=" in row.messages[1]["content"]: row.columns["difficulty"] for row in rows}
    assert difficulty[True] > difficulty[False]


def test_fingerprint_follows_the_settings():
    changes = [{}, {"level": 3}, {"kind": "text"}, {"num_train": 41}, {"num_validation": 41}, {"seed": 1}]
    prints = [make(**change).fingerprint() for change in [*changes, {"num_rejected": 2}]]
    assert len(set(prints)) == len(prints) and make().fingerprint() == prints[0]
    assert not make().dropped
