"""The folder of a run: its paths, and a lock that lets only one process write to it."""

import contextlib
import fcntl
import json
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TextIO

from alignlab.errors import InputError
from alignlab.run_folder.location import FILES, LEFTOVERS, TRACKERS, names_in
from alignlab.run_folder.metrics_file import has_steps
from alignlab.run_folder.storage import SavedState, remove_leftovers
from alignlab.system.disk import LOCK, write_text

WRITTEN = (*FILES, *LEFTOVERS, LOCK, "checkpoints", "plots", "trace", *TRACKERS)
"""Names that a run may have written into its folder before its first step."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run and the paths in it.

    Args:
        path: The folder.
        checkpoint: Verified checkpoint to resume from; None for a fresh start.
        notes: Decisions and their reasons, one sentence each, to show to the user.
        before: Names that were in the folder before this run; None if this run created the folder.
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
        """Facts about the run, and how it ended."""
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
        """The trained model, in the format of Transformers or PEFT."""
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
    def trace(self) -> Path:
        """Traces of some steps, one file per rank."""
        return self.path / "trace"

    @property
    def log(self) -> Path:
        """Copy of everything printed and logged."""
        return self.path / "train.log"

    @property
    def wandb_id(self) -> Path:
        """File with the W&B id of the run, so that a resumed run continues the same W&B run."""
        return self.path / "wandb" / "run_id.txt"

    @property
    def mlflow_id(self) -> Path:
        """File with the id of the MLflow run, for the same purpose."""
        return self.path / "mlflow" / "run_id.txt"

    @property
    def trackio_name(self) -> Path:
        """File with the name of the Trackio run, for the same purpose."""
        return self.path / "trackio" / "run_name.txt"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def status(self) -> str | None:
        """Status in the summary (see ``callbacks.summary``); None if there is no summary."""
        return read_status(self.path)

    @property
    def origin(self) -> Path:
        """Folder of the run that wrote the checkpoint; this folder if the run continues itself or starts fresh."""
        return self.checkpoint.folder.parent.parent if self.checkpoint else self.path

    @property
    def is_branch(self) -> bool:
        """Whether the run starts from a checkpoint of another run."""
        return self.origin.resolve() != self.path.resolve()

    @property
    def has_trained(self) -> bool:
        """Whether a run in this folder has logged or saved a step, or written its model."""
        return self.model.exists() or any(self.checkpoints.glob("step-*")) or has_steps(self.metrics)

    def write_config(self, text: str) -> None:
        """Write the resolved config; a resumed run replaces the previous one."""
        write_text(self.config, text)

    def discard(self) -> None:
        """Remove the files of this run, if it was refused before its first step.

        Files that were in the folder before are kept, and so is the folder if it existed or holds anything else.
        """
        continues_itself = self.checkpoint is not None and not self.is_branch
        if continues_itself or self.has_trained:
            return
        for name in names_in(self.path) - (self.before or set()):
            if any(fnmatch(name, pattern) for pattern in WRITTEN):
                _remove(self.path / name)
        if self.before is None:
            with contextlib.suppress(OSError):  # it holds other files
                self.path.rmdir()

    def remove_leftovers(self) -> None:
        """Remove partial files of a killed process of this run. Only the process that holds the lock may call this."""
        for path in (path for pattern in LEFTOVERS for path in self.path.glob(pattern)):
            _remove(path)
        remove_leftovers(self.checkpoints)

    def lock(self) -> "RunFolder":
        """Lock the folder for this process until it ends.

        Raises:
            InputError: Another process trains in the folder, or one of its files is not a regular file.
        """
        for name in names_in(self.path):
            ours, path = any(fnmatch(name, pattern) for pattern in (*FILES, LOCK)), self.path / name
            if ours and path.exists() and not path.is_file():  # opening a pipe would block
                raise InputError(f"training in {self.path}", f"{name} in it is not a file", "Remove or rename it")
        file = (self.path / LOCK).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            instead = "Wait for it to end, or give another run_dir="
            raise InputError(f"training in {self.path}", "another process trains there now", instead) from error
        self._lock.append(file)
        return self

    def unlock(self) -> None:
        """Release the lock, if this process holds it."""
        while self._lock:
            self._lock.pop().close()


def read_status(path: Path) -> str | None:
    """Status of the run in a folder; None if there is no readable summary."""
    try:
        if not (path / "summary.json").is_file():  # reading a pipe would block
            return None
        return json.loads((path / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
