"""Completion in bash: what the script answers for a typed line."""

import subprocess

import pytest

from alignlab.cli.composition.compose import ROOT
from alignlab.cli.main import main

ASK = """
source /dev/stdin
COMP_LINE="$1"; COMP_POINT=${#1}; COMP_CWORD=$2
_alignlab
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script():
    from alignlab.cli.composition.completion import script

    return script(ROOT / "conf", ["preview", "train"])


def answers(script, line, position):
    asked = ["bash", "-c", ASK, "bash", line, str(position)]
    done = subprocess.run(asked, input=script, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "position", "expected"),
    [
        ("alignlab tr", 1, {"train"}),
        ("alignlab train --m", 2, {"--multirun"}),
        ("alignlab train opt", 2, {"optimizer=", "optimizer.lr=", "optimizer.weight_decay="}),
        ("alignlab train method=gr", 4, {"grpo", "group_dpo"}),
        ("alignlab train seed=1 method/loss=hi", 5, {"hinge"}),
        ("alignlab train peft.r", 2, {"peft.r="}),
        ("alignlab train overw", 2, {"overwrite="}),
        ("alignlab train nothing=", 4, set()),
    ],
)
def test_words_are_completed(script, line, position, expected):
    assert answers(script, line, position) >= expected
    assert expected or answers(script, line, position) == set()


def test_it_is_printed_for_bash(capsys):
    assert main(["--completion"]) == 0
    assert "complete -F _alignlab alignlab" in capsys.readouterr().out
