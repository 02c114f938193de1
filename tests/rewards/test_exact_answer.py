import pytest

from alignlab.rewards.exact_answer import exact_answer, final_answer

FINAL = {
    "<reasoning>1+2: 3</reasoning><answer>3</answer>": "3",
    "<answer> 12 </answer> no, <answer>13</answer>": "13",
    "So 48/2 = 24.\n#### 72": "72",
    "It is 1,234.5 in all.": None,
}
PAIRS = [
    ("<answer>85</answer>", "85", 1),
    ("<answer>85.0</answer>", "85", 1),
    ("<answer>1,085</answer>", "1085", 1),
    ("<answer>86</answer>", "85", 0),
    ("#### 72", "Natalia sold 48+24 = 72 clips.\n#### 72", 1),
    ("the answer is 7", "7", 1),
    ("85", "<answer>85</answer>", 1),
    ("<answer>Paris</answer>", "<answer>Paris</answer>", 1),
    ("", "7", 0),
    ("Yes", "yes", 1),
    ("No", "Yes", 0),
    ("5/6", "6", 0),
    ("x = 10-3", "3", 0),
    ("so it is -3", "-3", 1),
    ("Born in 1789", "He died in 1789", 0),
    ("It costs $1,234.50.", "1234.5", 1),
]


@pytest.mark.parametrize("text", FINAL)
def test_the_final_answer(text):
    assert final_answer(text) == FINAL[text]


@pytest.mark.parametrize(("completion", "answer", "score"), PAIRS)
def test_scores(completion, answer, score):
    assert exact_answer(completion, answer) == score
