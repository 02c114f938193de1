"""Two runs side by side."""

import pytest

from alignlab.report.compare import comparison
from alignlab.report.records import read_records
from tests.commands import alignlab
from tests.report.runs import write_run


@pytest.fixture
def pair(tmp_path):
    """Two runs that differ by their rate, their peft and their result."""
    write_run(tmp_path / "a", lr=1e-4, losses=(0.7, 0.5))
    write_run(
        tmp_path / "b", lr=1e-3, losses=(0.7, 0.25), peft={"_target_": "peft.LoraConfig"}, packages={"torch": "2.11"}
    )
    return tmp_path / "a", tmp_path / "b"


def test_only_what_differs_is_listed(pair):
    found = comparison(*read_records(pair))
    assert found == {
        "settings": [("optimizer.lr", "0.0001", "0.001"), ("peft", "null", "lora_config")],
        "results": [("val/loss", "0.5", "0.25", "-0.25")],
        "environment": [("packages.torch", "2.13", "2.11")],
    }


def test_the_command_prints_it(pair, capsys):
    assert alignlab("compare", *pair) == 0
    said = capsys.readouterr().out
    assert "optimizer.lr" in said and "-0.25" in said and "packages.torch" in said


def test_more_or_fewer_than_two_runs_are_refused(pair, capsys):
    assert alignlab("compare", pair[0]) == 2
    assert alignlab("compare", pair[0].parent, pair[0]) == 0
    assert "hold 1, and two runs are compared" in capsys.readouterr().err
