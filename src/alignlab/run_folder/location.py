"""Where a run may write: a folder of its own, and nothing that somebody else put there."""

import os
from fnmatch import fnmatch
from pathlib import Path

from alignlab.errors import InputError
from alignlab.system.disk import LOCK

INSTEAD = "Name a folder that does not exist yet or is empty, or leave run_dir out for a new one under runs/"

FILES = ("config.yaml", "summary.json", "metrics.csv", "samples.jsonl", "train.log", "train-rank*.log", "vllm_*.log")
FOLDERS = ("checkpoints", "model", "plots", "wandb", "tensorboard")
REPLACED = ("config.yaml", "summary.json", "metrics.csv", "samples.jsonl", "model")
LEFTOVERS = (*(f".{name}.partial" for name in REPLACED), ".model.old")
"""What a run that was killed leaves besides, while it writes a file or its model."""

SYSTEM = (".nfs*", ".DS_Store", "lost+found")
"""What file systems put into folders."""

JOBS = ".jobs"
"""Folder of a sweep's notes about its jobs."""

OWN = (*FILES, *FOLDERS, *LEFTOVERS, LOCK, *SYSTEM)
"""Names in the folder of a run; whatever else lies there is somebody else's."""


def refuse_unsafe(path: Path, asked: str) -> None:
    """Refuse a folder that is plainly not for one run, before anything is written.

    Args:
        path: Where the run would write.
        asked: As the user typed it.

    Raises:
        InputError: It has no name, or is the working folder or one above it, the home folder, a repository, or a file.
    """
    if not asked.partition("=")[2].strip():
        raise InputError(asked, "the name is empty (a variable that is not set, perhaps)", INSTEAD)
    try:
        resolved, working = path.resolve(), Path.cwd().resolve()
        reasons = {
            "it is the working folder, or contains it": resolved == working or resolved in working.parents,
            "it is your home folder": resolved == Path.home().resolve(),
            "it is a repository": any((resolved / name).exists() for name in (".git", ".hg", ".svn")),
            "it is no folder": path.exists() and not path.is_dir(),
        }
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, links that go in a circle
        raise InputError(asked, f"it cannot be a folder: {error}", INSTEAD) from error
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why:
        raise InputError(asked, f"{why}, and a run writes and removes files by name in its folder", INSTEAD)


def refuse_foreign(path: Path, asked: str) -> None:
    """Refuse a folder for a new run that holds what no run has made.

    Raises:
        InputError: Names some of it.
    """
    foreign = sorted(name for name in names_in(path) if not _is_own(name))
    if foreign:
        shown = f"{', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}"
        raise InputError(asked, f"the folder holds what no run has made: {shown}", INSTEAD)


def refuse_for_sweep(path: Path, asked: str) -> None:
    """Refuse a folder for the runs of a sweep that is not for them alone, before anything is written.

    Raises:
        InputError: As ``refuse_unsafe``, or it holds what no sweep has made.
    """
    refuse_unsafe(path, asked)
    names = names_in(path)
    if names and JOBS not in names:
        raise InputError(asked, f"the folder holds what no sweep has made: {', '.join(sorted(names)[:3])}", INSTEAD)


def names_in(path: Path) -> set[str]:
    """Names of what lies in a folder; none where there is no folder."""
    return set(os.listdir(path)) if path.is_dir() else set()


def _is_own(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in OWN)
