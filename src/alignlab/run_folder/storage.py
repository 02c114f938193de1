"""Checkpoint folders on disk: written atomically, and verified when opened.

A checkpoint is a folder ``step-00000100`` holding the state of training (``state.ckpt``, what Lightning saves), the
random states of every rank (``random-00000.pt``), the best weights so far (``best/``) and its own as a model
(``model/``) if the run keeps them, and ``manifest.json`` with the size and SHA-256 of each file. It is
written under a hidden name, synced to disk and renamed, so a folder with a step's name is complete unless it was
damaged later, which the manifest detects. ``last`` is a symbolic link to the newest checkpoint.
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
BEST = "best"
"""The best weights so far as a model folder, in the folder of checkpoints and in each checkpoint."""
MODEL = "model"
"""The weights of a checkpoint as a model folder in it."""
STEP_FOLDER = re.compile(r"step-(\d{8,})")
LEFTOVERS = (".step-*.partial", ".step-*.removed", f".{LAST}.partial", f".{BEST}.partial", f".{BEST}.old")
"""Names that a killed process may leave in the folder of checkpoints."""


@dataclass(frozen=True)
class SavedState:
    """A verified checkpoint.

    Args:
        folder: The checkpoint folder.
        step: Number of optimizer steps done when it was written.
        world_size: Number of ranks that wrote it.
    """

    folder: Path
    step: int
    world_size: int

    @property
    def state(self) -> Path:
        """Path to pass to ``Trainer.fit(ckpt_path=…, weights_only=True)``."""
        return self.folder / STATE


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint of an optimizer step."""
    return checkpoints / f"step-{step:08d}"


def new_partial(checkpoints: Path, step: int) -> Path:
    """Create an empty hidden folder for a checkpoint."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    remove_leftovers(checkpoints)
    partial = partial_folder(checkpoints, step)
    partial.mkdir()
    return partial


def remove_leftovers(checkpoints: Path) -> None:
    """Remove partial checkpoints of a killed process of this run, and nothing else."""
    for leftover in (path for pattern in LEFTOVERS for path in checkpoints.glob(pattern)):
        _delete(leftover)


def partial_folder(checkpoints: Path, step: int) -> Path:
    """Hidden folder in which the checkpoint of a step is written before it is renamed."""
    return checkpoints / f".{step_folder(checkpoints, step).name}.partial"


def publish(checkpoints: Path, step: int, *, world_size: int, keep_last: int) -> Path:
    """Rename a complete checkpoint to its final name, point ``last`` to it, and remove old ones.

    Checkpoints of later steps are removed too: they are from before the run was resumed at an earlier step.

    Args:
        checkpoints: The run's folder of checkpoints.
        step: Optimizer step of the checkpoint in its hidden folder.
        world_size: Number of ranks that wrote it.
        keep_last: Number of checkpoints to keep, including this one.

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


def copy_linked(folder: Path, to: Path) -> None:
    """Copy a folder whose files are only ever replaced, as hard links where the file system allows it.

    Args:
        folder: The folder.
        to: Does not exist yet.
    """
    shutil.copytree(folder, to, copy_function=_link)


def restore_best(checkpoints: Path, checkpoint: Path | None) -> None:
    """Replace the best weights of a run by those in the checkpoint that it resumes from.

    Args:
        checkpoints: The run's folder of checkpoints.
        checkpoint: A checkpoint of this run or of another; ``None`` for a fresh start. It may have no best weights.
    """
    shutil.rmtree(checkpoints / BEST, ignore_errors=True)
    if checkpoint is not None and (checkpoint / BEST).is_dir():
        copy_linked(checkpoint / BEST, checkpoints / BEST)


def _link(source: str, to: str) -> None:
    try:
        os.link(source, to)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, to)


def open_checkpoint(path: Path) -> SavedState:
    """Verify a checkpoint against its manifest.

    Args:
        path: A checkpoint folder, or the link ``last``.

    Returns:
        The verified checkpoint.

    Raises:
        InputError: The folder is not a checkpoint, or a file is missing or differs from the manifest.
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
    return InputError(f"checkpoint {path}", why, "resume=auto takes the newest checkpoint that is complete")


def newest_valid(checkpoints: Path) -> tuple[SavedState | None, list[str]]:
    """Find the newest complete checkpoint, and describe each newer one that is broken.

    Args:
        checkpoints: The run's folder of checkpoints; it need not exist.
    """
    complaints: list[str] = []
    for _, folder in reversed(_steps(checkpoints)):
        try:
            return open_checkpoint(folder), complaints
        except InputError as error:
            complaints.append(f"{folder.name} is broken ({error.why})")
    return None, complaints


def _steps(checkpoints: Path) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints, oldest first."""
    named = [(STEP_FOLDER.fullmatch(path.name), path) for path in checkpoints.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in named if match)


def _point(link: Path, target: str) -> None:
    """Replace a symbolic link atomically, so that it always exists.

    A real folder of that name, as made by a copy that follows links, is renamed and not removed.
    """
    if link.exists() and not link.is_symlink():
        names = (link.with_name(f"{link.name}.{number}") for number in itertools.count(1))
        link.rename(next(name for name in names if not name.exists()))
    partial = link.with_name(f".{link.name}.partial")
    partial.symlink_to(target)
    os.replace(partial, link)


def _remove(folder: Path) -> None:
    """Rename a folder before deleting it, so that a crash leaves no incomplete folder under a step's name."""
    hidden = folder.with_name(f".{folder.name}.removed")
    os.replace(folder, hidden)
    _delete(hidden)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
