"""Running alignlab's commands as a user would, in this process or in one of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

from alignlab.cli.main import main
from alignlab.run_folder.metrics_file import AXIS, read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
QUIET = ["logger=none", "callbacks.exact_match=null"]


def alignlab(*words: str) -> int:
    """``alignlab WORDS`` in this process; the exit code."""
    return main([str(word) for word in words])


def start(*words: str, **environment: str) -> subprocess.Popen:
    """``alignlab WORDS`` in a process of its own, its output to be read."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def metrics(run: Path) -> list[dict[str, float]]:
    """Rows of the optimizer steps in a run's metrics.csv; that of step 0, the validation before them, is left out."""
    return [row for row in read_metrics(run / "metrics.csv") if row[AXIS] > 0]


def summary(run: Path) -> dict:
    """A run's summary.json."""
    return json.loads((run / "summary.json").read_text())
