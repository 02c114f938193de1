"""Checkpoint folders on disk: written whole or not at all, verified when opened.

A checkpoint is a folder ``step-00000100`` holding the state of training (``state.ckpt``, what Lightning saves), the
random states of every rank (``random-00000.pt``) and ``manifest.json`` with the size and SHA-256 of each file. It is
written under a hidden name, synced to the disk and renamed, so a folder with a step's name is always complete unless
somebody damaged it later, which the manifest shows. ``last`` is a symbolic link to the newest.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from alignlab.errors import InputError

STATE = "state.ckpt"
MANIFEST = "manifest.json"
LAST = "last"
STEP_FOLDER = re.compile(r"step-(\d{8,})")


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


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Args:
        path: File to write or to replace; its folder is made where it is absent.
        text: The new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint of an optimizer step."""
    return checkpoints / f"step-{step:08d}"


def new_partial(checkpoints: Path, step: int) -> Path:
    """An empty hidden folder to write a checkpoint into; what a crash left there before is removed."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    for leftover in checkpoints.glob(".*"):
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    partial = partial_folder(checkpoints, step)
    partial.mkdir()
    return partial


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
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(partial)): _fingerprint(path) for path in files}
    for path in files:
        _sync(path)
    write_text(partial / MANIFEST, json.dumps({"step": step, "world_size": world_size, "files": sizes}, indent=1))
    if final.exists():
        _remove(final)
    os.replace(partial, final)
    _point(checkpoints / LAST, final.name)
    _sync(checkpoints)
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
    fault = _fault(folder)
    if fault:
        raise InputError(f"checkpoint {path}", fault, "resume=auto takes the newest checkpoint that is whole")
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return SavedState(folder, manifest["step"], manifest["world_size"])


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
            complaints.append(f"{folder.name} is broken ({error.why}); falling back to the one before")
    return None, complaints


def _fault(folder: Path) -> str | None:
    """Why the folder is not a whole checkpoint, or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (size := (folder / name).stat().st_size) != expected["bytes"]:
            return f"{name} has {size:,} bytes where {MANIFEST} says {expected['bytes']:,}"
        if _fingerprint(folder / name) != expected:
            return f"the content of {name} is not what {MANIFEST} says"
    return None


def _steps(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step folders, oldest step first."""
    named = [(STEP_FOLDER.fullmatch(path.name), path) for path in checkpoints.glob("step-*")]
    return sorted((int(match[1]), path) for match, path in named if match)


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _point(link: Path, target: str) -> None:
    """Replace a symbolic link in one move, so that it always points somewhere."""
    partial = link.with_name(f".{link.name}.partial")
    partial.symlink_to(target)
    os.replace(partial, link)


def _remove(folder: Path) -> None:
    """Hide a folder first, so that a crash while deleting leaves no half folder under a step's name."""
    hidden = folder.with_name(f".{folder.name}.removed")
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
