"""What is promised whatever the fault: checks that several kinds share."""

import hashlib
import json
import os
import re
from pathlib import Path

from tests.faults.runs import Ended
from tests.test_resume import assert_same_run

SAID = re.compile(r"^(Refused|Failed|Stopped)\b", re.MULTILINE)
LEFT_OVERS = (".building-*", "*.partial", ".*.partial", ".step-*", ".*.removed", ".*.old")
"""Names under which something is written before it is whole."""


def told(ended: Ended, *codes: int) -> None:
    """The run ended with one of the codes, in words, and without a traceback."""
    assert ended.code in codes, f"exit code {ended.code}, not {codes}: {_end(ended)}"
    assert "Traceback (most recent call last)" not in ended.output, f"a traceback: {_end(ended)}"
    assert SAID.search(ended.output), f"nothing said: {_end(ended)}"


def refused(ended: Ended) -> None:
    """Exit code 2, one paragraph."""
    told(ended, 2)


def done(ended: Ended, run: Path) -> None:
    """Exit code 0, with a summary that says so and a model."""
    assert ended.code == 0, f"exit code {ended.code}: {_end(ended)}"
    assert status(run) == "done" and (run / "model").is_dir(), f"status {status(run)}"


def status(run: Path) -> str | None:
    """What the summary says; None where there is none."""
    try:
        return json.loads((run / "summary.json").read_text())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def same_run(whole: Path, run: Path) -> None:
    """Weights, metrics and samples are those of the undisturbed run."""
    assert_same_run(whole, run)
    if (whole / "samples.jsonl").exists():
        ours, theirs = ((path / "samples.jsonl").read_text().splitlines() for path in (run, whole))
        assert len(ours) == len(theirs), f"{len(ours)} samples instead of {len(theirs)}"
        assert ours == theirs, "other samples"


def no_left_overs(*folders: Path) -> None:
    """No temporary folder or file of a process that is gone."""
    found = [str(path) for folder in folders for name in LEFT_OVERS for path in folder.rglob(name)]
    assert not found, f"left over: {found}"


def tree(folder: Path) -> dict[str, str]:
    """Every file, link and folder below a folder, with a hash of what it holds."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def untouched(before: dict[str, str], folder: Path) -> None:
    """A folder holds what it held."""
    now = tree(folder)
    gone = sorted(before.keys() - now.keys())
    changed = sorted(name for name in before.keys() & now.keys() if before[name] != now[name])
    new = sorted(now.keys() - before.keys())
    assert not (gone or changed or new), f"gone {gone[:5]}, changed {changed[:5]}, new {new[:5]}"


def kept(before: dict[str, str], folder: Path) -> None:
    """Nothing that a folder held is gone or changed; new things may be there."""
    now = tree(folder)
    lost = sorted(name for name in before if now.get(name) != before[name])
    assert not lost, f"lost or changed: {lost[:8]}"


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def _end(ended: Ended) -> str:
    return ended.output.strip()[-700:]
