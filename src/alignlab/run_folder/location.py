"""Checks of where a run may write: its own folder, without files of others."""

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from alignlab.errors import InputError
from alignlab.system.disk import LOCK

INSTEAD = "Name a folder that does not exist yet or is empty, or leave run_dir out for a new one under runs/"

FILES = (
    *("config.yaml", "summary.json", "environment.json", "uncommitted.diff", "metrics.csv", "samples.jsonl"),
    *("train.log", "train-rank*.log", "vllm_*.log"),
)
TRACKERS = ("wandb", "tensorboard", "mlflow", "trackio")
FOLDERS = ("checkpoints", "model", "plots", "trace", "evaluation", *TRACKERS)
REPLACED = ("config.yaml", "summary.json", "environment.json", "uncommitted.diff", "metrics.csv", "samples.jsonl")
REPLACED = (*REPLACED, "model")
LEFTOVERS = (*(f".{name}.partial" for name in REPLACED), ".model.old")
"""Partial files that a killed run may leave while it writes a file or its model."""

SYSTEM = (".nfs*", ".DS_Store", "lost+found")
"""Files that file systems create in folders."""

JOBS = ".jobs"
"""Folder of a sweep's records of its jobs."""

SWEEP = "ALIGNLAB_SWEEP"
"""Environment variable of a sweep's jobs: its folder."""

OWN = (*FILES, *FOLDERS, *LEFTOVERS, LOCK, *SYSTEM)
"""Names in the folder of a run; all other files are foreign."""


def refuse_unsafe(path: Path, asked: str) -> None:
    """Check that a folder may be the folder of a run, before anything is written.

    Args:
        path: Folder of the run.
        asked: The setting as typed.

    Raises:
        InputError: The name is empty, or it is the working folder or one above it, the home folder, a repository, or a
            file.
    """
    if not asked.partition("=")[2].strip():
        raise InputError(asked, "the name is empty (a variable that is not set, perhaps)", INSTEAD)
    try:
        resolved, working = path.resolve(), Path.cwd().resolve()
        reasons = {
            "it is the working folder, or contains it": resolved == working or resolved in working.parents,
            "it is your home folder": resolved == Path.home().resolve(),
            "it is a repository": any((resolved / name).exists() for name in (".git", ".hg", ".svn")),
            "it is not a folder": path.exists() and not path.is_dir(),
        }
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, circular links
        raise InputError(asked, f"it cannot be a folder: {error}", INSTEAD) from error
    why = next((reason for reason, holds in reasons.items() if holds), None)
    if why:
        raise InputError(asked, f"{why}, and a run writes and removes files by name in its folder", INSTEAD)


def refuse_foreign(path: Path, asked: str) -> None:
    """Check that a folder without a run, for a new one, holds no files of others.

    Files that a run replaces are of others too: a run writes its config first, and there is none.

    Raises:
        InputError: It does; the error names some of them.
    """
    foreign = sorted(name for name in names_in(path) if name in REPLACED or not matches(name, OWN))
    if foreign:
        shown = f"{', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}"
        raise InputError(asked, f"the folder holds files that are not of a run: {shown}", INSTEAD)


def refuse_for_sweep(path: Path, asked: str) -> None:
    """Check that a folder may hold the runs of a sweep, before anything is written.

    Raises:
        InputError: As in ``refuse_unsafe``, or the folder holds files that are not of a sweep.
    """
    refuse_unsafe(path, asked)
    names = names_in(path)
    if names and JOBS not in names:
        why = f"the folder holds files that are not of a sweep: {', '.join(sorted(names)[:3])}"
        raise InputError(asked, why, INSTEAD)


def names_in(path: Path) -> set[str]:
    """Names in a folder; empty if there is no folder."""
    return set(os.listdir(path)) if path.is_dir() else set()


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of some patterns of the shell.

    Args:
        name: Name of a file or folder.
        patterns: Such as ``train-rank*.log``.
    """
    return any(fnmatch(name, pattern) for pattern in patterns)
