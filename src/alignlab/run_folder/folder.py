"""The folder of a run: which one it is, what lies where in it, and that only one process writes to it."""

import contextlib
import fcntl
import json
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import TextIO

from alignlab.errors import InputError
from alignlab.run_folder.location import FILES, LEFTOVERS, names_in
from alignlab.run_folder.storage import SavedState, remove_leftovers
from alignlab.system.disk import LOCK, write_text

WRITTEN = (*FILES, *LEFTOVERS, LOCK, "checkpoints", "plots", "wandb", "tensorboard")
"""What a run may have written into its folder before it trained a step."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and what lies in it.

    Args:
        path: The folder.
        checkpoint: Verified checkpoint to continue from; None for a fresh start.
        notes: What was decided and why, a sentence each, to be shown to the user.
        before: Names that lay in it before this run; None where this run has made the folder.
    """

    path: Path
    checkpoint: SavedState | None = None
    notes: tuple[str, ...] = ()
    before: frozenset[str] | None = None
    _lock: list[TextIO] = field(default_factory=list, repr=False, compare=False)

    def __reduce__(self):  # the lock stays with the process that holds it
        return RunFolder, (self.path, self.checkpoint, self.notes, self.before)

    @property
    def first_step(self) -> int:
        """Optimizer steps already done when this run starts."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        """What the run was and how it ended."""
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        """Every logged metric by optimizer step."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Step folders and ``last``."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The result, as other tools read it."""
        return self.path / "model"

    @property
    def plots(self) -> Path:
        """Curves as PNG files."""
        return self.path / "plots"

    @property
    def samples(self) -> Path:
        """Completions with their scores."""
        return self.path / "samples.jsonl"

    @property
    def log(self) -> Path:
        """What was printed and logged."""
        return self.path / "train.log"

    @property
    def wandb_id(self) -> Path:
        """The id of the run at W&B, so that a resumed run is the same one there."""
        return self.path / "wandb" / "run_id.txt"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def status(self) -> str | None:
        """As the summary says, see ``training.record``; None where there is none."""
        return read_status(self.path)

    @property
    def origin(self) -> Path:
        """Folder of the run that wrote the checkpoint; its own where it continues itself or starts fresh."""
        return self.checkpoint.folder.parent.parent if self.checkpoint else self.path

    @property
    def is_branch(self) -> bool:
        """Whether it goes on from a checkpoint of another run."""
        return self.origin.resolve() != self.path.resolve()

    @property
    def has_trained(self) -> bool:
        """Whether a step of a run in this folder was logged or saved, or its model written."""
        return self.model.exists() or any(self.checkpoints.glob("step-*")) or _has_rows(self.metrics)

    def write_config(self, text: str) -> None:
        """Write the resolved config; on a resume it replaces the one before."""
        write_text(self.config, text)

    def discard(self) -> None:
        """Remove what this run has written, where it was refused before it trained a step.

        What lay in the folder before stays, and so does the folder if it was there or holds anything else.
        """
        continues_itself = self.checkpoint is not None and not self.is_branch
        if continues_itself or self.has_trained:
            return
        for name in names_in(self.path) - (self.before or set()):
            if any(fnmatch(name, pattern) for pattern in WRITTEN):
                _remove(self.path / name)
        if self.before is None:
            with contextlib.suppress(OSError):  # something else lies there
                self.path.rmdir()

    def remove_leftovers(self) -> None:
        """Remove what a killed process of this run was writing; to be called by the process that holds the lock."""
        for path in (path for pattern in LEFTOVERS for path in self.path.glob(pattern)):
            _remove(path)
        remove_leftovers(self.checkpoints)

    def lock(self) -> "RunFolder":
        """Keep other processes out of the folder until this one ends.

        Raises:
            InputError: Another process trains in it, or something else lies in the place of one of its files.
        """
        for name in names_in(self.path):
            ours, path = any(fnmatch(name, pattern) for pattern in (*FILES, LOCK)), self.path / name
            if ours and path.exists() and not path.is_file():  # a pipe would be waited for
                raise InputError(f"training in {self.path}", f"{name} there is no file", "Remove or rename it")
        file = (self.path / LOCK).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            instead = "Wait for it to end, or give another run_dir="
            raise InputError(f"training in {self.path}", "another process trains there now", instead) from error
        self._lock.append(file)
        return self

    def unlock(self) -> None:
        """Let others in again; nothing where this process holds no lock."""
        while self._lock:
            self._lock.pop().close()


def read_status(path: Path) -> str | None:
    """Status of the run in a folder, None where there is no readable summary."""
    try:
        if not (path / "summary.json").is_file():  # reading a pipe would wait for ever
            return None
        return json.loads((path / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _has_rows(table: Path) -> bool:
    try:
        with table.open("rb") as file:
            return len(list(islice(file, 2))) == 2
    except OSError:
        return False


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
