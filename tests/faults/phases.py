"""The moments of a run at which it is disturbed."""

import random
import time
from pathlib import Path
from typing import NamedTuple

from tests.faults.runs import Run

LONGEST = {"start-up": 6.0, "tokenising": 0.1, "training": 2.5, "checkpoint": 0.1, "export": 1.5}
"""Phases of a tiny run, and for how many seconds one lasts at most: the moment is drawn within that."""

SIGNS = {
    "tokenising": ("cache", ".building-*"),
    "training": ("run", "metrics.csv"),
    "checkpoint": ("run/checkpoints", ".step-*"),
    "export": ("run", "*model*"),
}
"""Where a phase shows itself: folder and name of what is made or changed."""


class Moment(NamedTuple):
    """When to disturb a run.

    Args:
        phase: Key of ``LONGEST``.
        share: Of its longest duration, after its first sign.
        nth: That checkpoint, counted from 1.
    """

    phase: str
    share: float
    nth: int

    def __str__(self) -> str:
        return f"{self.phase}+{self.share:.2f}"


def draw(chance: random.Random, *, forked: bool) -> Moment:
    """A random moment; forks have no start-up worth the name."""
    phases = [phase for phase in LONGEST if not (forked and phase == "start-up")]
    return Moment(chance.choice(phases), chance.random(), chance.randint(1, 3))


def reach(moment: Moment, run: Run, folder: Path) -> bool:
    """Wait for a moment; False where the run ended before.

    A phase that does not come any more (nothing to tokenise on a resume) ends when the export begins.
    """
    seen: set[int] = set()
    while moment.phase != "start-up" and run.poll() is None:
        seen |= _signs(moment.phase, folder, run.began)
        if len(seen) >= (moment.nth if moment.phase == "checkpoint" else 1) or _signs("export", folder, run.began):
            break
        time.sleep(0.001)
    limit = time.time() + moment.share * LONGEST[moment.phase]
    while run.poll() is None and time.time() < limit:
        time.sleep(0.001)
    return run.poll() is None


def _signs(phase: str, folder: Path, since: float) -> set[int]:
    where, name = SIGNS[phase]
    found = (folder / where).rglob(name) if phase == "tokenising" else (folder / where).glob(name)
    return {changed for path in found if (changed := _changed(path)) > since * 1e9}


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
