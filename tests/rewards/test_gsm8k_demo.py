"""The scores of the GRPO demo on GSM8K, by hand, through the config of its experiment."""

import pytest

from alignlab.cli.composition.compose import ROOT, compose
from alignlab.config import compat, schema
from alignlab.config.build import build

NAMES = ("correctness", "integer", "strict_format", "soft_format", "xml_count")
SOLUTION = "Half of 84 is <<84/2=42>>42.\n#### 42"
STRICT = "<reasoning>\nhm\n</reasoning>\n<answer>\n42\n</answer>\n"
CASES = {
    "strict, which is never soft": (STRICT, SOLUTION, (2, 0.5, 0.5, 0, 0.5)),
    "one line break more is still strict, and each count of the end charges for it": (
        STRICT + "\n", SOLUTION, (2, 0.5, 0.5, 0, 0.5 - 0.001 - 0.001),
    ),
    "without the last line break: the first count charges for all 49 characters, the second for -1": (
        STRICT[:-1], SOLUTION, (2, 0.5, 0, 0, 0.5 - 0.049 + 0.001),
    ),
    "text after it is charged twice": (STRICT + "bye", SOLUTION, (2, 0.5, 0, 0, 0.5 - 0.003 - 0.003)),
    "on one line: the soft format": ("<reasoning>hm</reasoning> <answer>42</answer>", SOLUTION, (2, 0.5, 0, 0.5, 0)),
    "text after the soft format": ("<reasoning>hm</reasoning><answer>42</answer>!", SOLUTION, (2, 0.5, 0, 0.5, 0)),
    "text before it": ("So <reasoning>hm</reasoning><answer>42</answer>", SOLUTION, (2, 0.5, 0, 0, 0)),
    "reasoning of two lines": (STRICT.replace("hm", "hm\nhm"), SOLUTION, (2, 0.5, 0, 0, 0.5)),
    "another integer": (STRICT.replace("42", "41"), SOLUTION, (0, 0.5, 0.5, 0, 0.5)),
    "an integer with a sign is none": (STRICT.replace("42", "-42"), SOLUTION, (0, 0, 0.5, 0, 0.5)),
    "answers are texts": (STRICT.replace("42", "1234"), "#### 1,234", (0, 0.5, 0.5, 0, 0.5)),
    "the last answer counts, and tags that occur twice do not": (
        STRICT + STRICT.replace("42", "7"), SOLUTION, (0, 0.5, 0, 0, 0),
    ),
    "no tags: the whole text is the answer": ("42", SOLUTION, (2, 0.5, 0, 0, 0)),
    "nothing": ("", SOLUTION, (0, 0, 0, 0, 0)),
    "a row without answer": (STRICT, "who knows", (0, 0.5, 0.5, 0, 0.5)),
}  # fmt: skip


@pytest.fixture(scope="module")
def rewards():
    """The rewards of ``experiments=gsm8k_demo``, by name."""
    config = schema.check(compose(["experiments=gsm8k_demo"]))
    compat.check(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = {name: build(f"method.reward.{name}", node) for name, node in config["method"]["reward"].items()}
        for one in made.values():
            one.prepare()
        yield made


@pytest.mark.parametrize("case", CASES)
def test_scores(rewards, case):
    text, solution, expected = CASES[case]
    assert tuple(rewards) == NAMES
    scores = [one([text], [[]], completion=[solution], num_tokens=[9])[0] for one in rewards.values()]
    assert scores == pytest.approx(expected)


def test_the_runs_differ_in_their_rewards_alone():
    """Results of the two experiments can be compared."""
    one, two = (schema.check(compose([f"experiments={name}"])) for name in ("gsm8k_demo", "gsm8k_grpo"))
    for config in (one, two):
        del config["method"]["reward"], config["method"]["reward_weights"]
    assert one == two
