"""Checkpoint folders on disk: written whole or not at all, verified when opened.

A checkpoint is a folder ``step-00000100`` holding the state of training (``state.ckpt``, what Lightning saves), the
random states of every rank (``random-00000.pt``) and ``manifest.json`` with the size and SHA-256 of each file. It is
written under a hidden name, synced to the disk and renamed, so a folder with a step's name is always complete unless
somebody damaged it later, which the manifest shows. ``last`` is a symbolic link to the newest.
"""

import itertools
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import InputError
from alignlab.system.disk import MANIFEST, read_manifest, sync, write_manifest

STATE = "state.ckpt"
LAST = "last"
STEP_FOLDER = re.compile(r"step-(\d{8,})")
LEFTOVERS = (".step-*.partial", ".step-*.removed", f".{LAST}.partial")
"""What a process that was killed may leave among the checkpoints."""


@dataclass(frozen=True)
class SavedState:
    """A verified checkpoint.

    Args:
        folder: The checkpoint folder.
        step: Optimizer steps done when it was written.
        world_size: Ranks that wrote it.
    """

    folder: Path
    step: int
    world_size: int

    @property
    def state(self) -> Path:
        """What ``Trainer.fit(ckpt_path=…, weights_only=True)`` takes."""
        return self.folder / STATE


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint of an optimizer step."""
    return checkpoints / f"step-{step:08d}"


def new_partial(checkpoints: Path, step: int) -> Path:
    """An empty hidden folder to write a checkpoint into."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    remove_leftovers(checkpoints)
    partial = partial_folder(checkpoints, step)
    partial.mkdir()
    return partial


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what a killed process of this run was writing or removing; nothing else that lies there."""
    for leftover in (path for pattern in LEFTOVERS for path in checkpoints.glob(pattern)):
        _delete(leftover)


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it gets its name."""
    return checkpoints / f".{step_folder(checkpoints, step).name}.partial"


def publish(checkpoints: Path, step: int, *, world_size: int, keep_last: int) -> Path:
    """Give a completely written checkpoint its name, point ``last`` to it and prune older ones.

    Checkpoints of later steps belong to a future that was left by resuming from an earlier one; they are removed too.

    Args:
        checkpoints: The run's folder of checkpoints.
        step: Optimizer step of the checkpoint that waits under its hidden name.
        world_size: Ranks that wrote it.
        keep_last: Checkpoints to keep, this one included.

    Returns:
        The folder of the checkpoint.
    """
    partial, final = partial_folder(checkpoints, step), step_folder(checkpoints, step)
    write_manifest(partial, step=step, world_size=world_size)
    if final.exists():
        _remove(final)
    os.replace(partial, final)
    _point(checkpoints / LAST, final.name)
    sync(checkpoints)
    earlier = [folder for number, folder in _steps(checkpoints) if number <= step]
    for _, folder in _steps(checkpoints):
        if folder not in earlier[-keep_last:]:
            _remove(folder)
    return final


def open_checkpoint(path: Path) -> SavedState:
    """Verify a checkpoint against its manifest.

    Args:
        path: A checkpoint folder, or the link ``last``.

    Returns:
        The verified checkpoint.

    Raises:
        InputError: The folder is no checkpoint, or a file is missing, shorter, longer or different.
    """
    folder = Path(path).resolve()
    try:
        facts = read_manifest(folder)
    except ValueError as error:
        raise _broken(path, str(error)) from error
    step, world_size = facts.get("step"), facts.get("world_size")
    if not isinstance(step, int) or not isinstance(world_size, int) or world_size < 1:
        raise _broken(path, f"{MANIFEST} says step {step} and world_size {world_size}")
    if STEP_FOLDER.fullmatch(folder.name) and step_folder(folder.parent, step) != folder:
        raise _broken(path, f"{MANIFEST} says step {step}")
    return SavedState(folder, step, world_size)


def _broken(path: Path, why: str) -> InputError:
    return InputError(f"checkpoint {path}", why, "resume=auto takes the newest checkpoint that is whole")


def newest_valid(checkpoints: Path) -> tuple[SavedState | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence for each newer one that is not.

    Args:
        checkpoints: The run's folder of checkpoints; need not exist.
    """
    complaints: list[str] = []
    for _, folder in reversed(_steps(checkpoints)):
        try:
            return open_checkpoint(folder), complaints
        except InputError as error:
            complaints.append(f"{folder.name} is broken ({error.why})")
    return None, complaints


def _steps(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step folders, oldest step first."""
    named = [(STEP_FOLDER.fullmatch(path.name), path) for path in checkpoints.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in named if match)


def _point(link: Path, target: str) -> None:
    """Replace a symbolic link in one move, so that it always points somewhere.

    A real folder of that name (a copy that followed links makes one) is not ours to remove: it is renamed.
    """
    if link.exists() and not link.is_symlink():
        names = (link.with_name(f"{link.name}.{number}") for number in itertools.count(1))
        link.rename(next(name for name in names if not name.exists()))
    partial = link.with_name(f".{link.name}.partial")
    partial.symlink_to(target)
    os.replace(partial, link)


def _remove(folder: Path) -> None:
    """Hide a folder first, so that a crash while deleting leaves no half folder under a step's name."""
    hidden = folder.with_name(f".{folder.name}.removed")
    os.replace(folder, hidden)
    _delete(hidden)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
