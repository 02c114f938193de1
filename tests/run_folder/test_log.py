"""train.log holds what was printed and logged, once, and without control codes."""

import io
import logging
import sys

from alignlab.run_folder import console
from alignlab.run_folder.log import captured, terminal


def test_prints_and_records_are_copied_and_streams_put_back(tmp_path, capsys):
    before = sys.stdout
    with captured(tmp_path / "train.log"):
        print("hello")
        print("\x1b[1mbold\x1b[0m", file=sys.stderr)
        print("10 %\r20 %\r30 %")
        print("for the terminal only", file=terminal(sys.stdout))
        logging.getLogger("alignlab.somewhere").warning("dropped 3 rows")
        logging.getLogger("lightning.pytorch.utilities.rank_zero").warning("once")
        print("no end", end="")
    assert sys.stdout is before
    text = (tmp_path / "train.log").read_text()
    lines = text.splitlines()
    assert [line for line in lines if ": " not in line] == ["hello", "bold", "30 %", "no end"]
    assert sum("dropped 3 rows" in line for line in lines) == sum(": once" in line for line in lines) == 1
    assert "for the terminal only" in capsys.readouterr().out


def test_a_resumed_run_adds_to_its_log(tmp_path):
    for word in ("first", "second"):
        with captured(tmp_path / "train.log"):
            print(word)
    assert (tmp_path / "train.log").read_text() == "first\nsecond\n"


def test_notes_go_to_standard_error_as_it_is_and_not_twice_to_the_log(tmp_path, monkeypatch):
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    console.set_up(debug=False)
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    with captured(tmp_path / "train.log"):
        logging.getLogger("alignlab.somewhere").warning("a note")
    assert second.getvalue() == "a note\n"
    assert (tmp_path / "train.log").read_text().count("a note") == 1
