"""Wording: a problem as plain numbers or as a short story."""

from random import Random

from alignlab.data.sources.arithmetic.problems import Problem

QUESTIONS = ("What is {}?", "{} = ?", "Calculate {}.", "How much is {}?")

PEOPLE = (("Ada", "She"), ("Ben", "He"), ("Eva", "She"), ("Leo", "He"), ("Mia", "She"), ("Tom", "He"))
THINGS = ("apples", "books", "cards", "coins", "eggs", "shells", "stamps", "stones")

OPENINGS = ("{name} has {first} {things}.",)
PRODUCT_OPENINGS = (
    "{name} has {second} bags of {first} {things}.",
    "{name} fills {second} boxes with {first} {things} each.",
)
EVENTS = {
    "+": ("{pronoun} buys {number} more.", "{pronoun} finds {number} more.", "{pronoun} gets {number} more."),
    "-": ("{pronoun} sells {number}.", "{pronoun} loses {number}.", "{pronoun} gives away {number}."),
}
ENDS = ("How many {things} now?", "How many {things} does {name} have?")


def word(problem: Problem, rng: Random) -> str:
    """Write a problem as a question: with equal probability in numbers or as a story.

    Args:
        problem: The problem to ask.
        rng: Chooses the wording.
    """
    return rng.choice((_numbers, _story))(problem, rng)


def _numbers(problem: Problem, rng: Random) -> str:
    first, *rest = problem.numbers
    terms = [str(first)] + [f"{sign} {number}" for sign, number in zip(problem.signs, rest, strict=True)]
    return rng.choice(QUESTIONS).format(" ".join(terms))


def _story(problem: Problem, rng: Random) -> str:
    name, pronoun = rng.choice(PEOPLE)
    first, second, *_ = problem.numbers
    product = problem.signs[0] == "*"  # the opening states the product
    events = list(zip(problem.signs, problem.numbers[1:], strict=True))[product:]
    sentences = [
        rng.choice(PRODUCT_OPENINGS if product else OPENINGS),
        *(rng.choice(EVENTS[sign]).replace("{number}", str(number)) for sign, number in events),
        rng.choice(ENDS),
    ]
    words = {"name": name, "pronoun": pronoun, "things": rng.choice(THINGS), "first": first, "second": second}
    return " ".join(sentences).format(**words)
