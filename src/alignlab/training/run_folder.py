"""The folder of a run: which one it is, what lies where in it, and that only one process writes to it."""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from alignlab.disk import write_text
from alignlab.errors import InputError
from alignlab.training.storage import STATE, SavedState, newest_valid, open_checkpoint

NOT_HASHED = ("run_dir", "resume", "debug", "launcher")
"""Keys of the config that say where or how a run is watched, not what it is."""

SERVERS = (
    "vllm_executable", "urls", "num_servers", "devices", "environment", "arguments", "gpu_memory_fraction",
    "cpu_cache_gib", "weights_dir", "timeout_seconds", "num_restarts", "batch_size",
)  # fmt: skip
"""Keys of ``rollout`` that say where completions are drawn, not which."""
MAY_CHANGE = {*NOT_HASHED, "tags", "trainer", "checkpoint", "logger", "callbacks", "data.cache_dir", "data.fresh"}
MAY_CHANGE |= {f"rollout.{key}" for key in SERVERS}
"""What may differ when a run is continued."""


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and what lies in it.

    Args:
        path: The folder.
        checkpoint: Verified checkpoint to continue from; None for a fresh start.
        notes: What was decided and why, a sentence each, to be shown to the user.
    """

    path: Path
    checkpoint: SavedState | None = None
    notes: tuple[str, ...] = ()
    _lock: list[TextIO] = field(default_factory=list, repr=False, compare=False)

    def __reduce__(self):
        return RunFolder, (self.path, self.checkpoint, self.notes)  # the lock stays with the process that holds it

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
        """``running``, ``done``, ``stopped`` or ``failed`` as the summary says; None where there is none."""
        return read_status(self.path)

    def write_config(self, text: str) -> None:
        """Write the resolved config; on a resume it replaces the one before."""
        write_text(self.config, text)

    def discard(self) -> None:
        """Take the folder away again, where the run came to nothing that could be continued."""
        if self.checkpoint is None and not any(self.checkpoints.glob("step-*")):
            shutil.rmtree(self.path, ignore_errors=True)

    def lock(self) -> "RunFolder":
        """Keep other processes out of the folder until this one ends.

        Raises:
            InputError: Another process trains in it.
        """
        file = (self.path / ".lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            instead = "Wait for it to end, or give another run_dir="
            raise InputError(f"training in {self.path}", "another process trains there now", instead) from error
        self._lock.append(file)
        return self


def make_run_folder(
    config: Mapping[str, Any], *, method: str, run_dir: str | None, resume: str | None, root: Path = Path("runs")
) -> RunFolder:
    """Decide on a run's folder, make it and lock it; to be called by one process per job.

    ====================  =============================================================================================
    ``resume``            folder and start
    ====================  =============================================================================================
    None                  ``run_dir``, which must hold no run yet, or a new folder under ``root``; fresh
    ``auto``              ``run_dir``, or the newest run of the same config that is not done; from its newest whole
                          checkpoint. Fresh where there is none
    a run folder          from its newest whole checkpoint, in that folder, or in ``run_dir`` as a new run
    a checkpoint folder   from it, likewise
    ====================  =============================================================================================

    Args:
        config: The resolved config as plain containers; its hash names the folder.
        method: Short name of the method.
        run_dir: Folder that the user asked for.
        resume: What the user asked to resume.
        root: Where folders without a given name are made.

    Raises:
        InputError: The folder already holds a run, another process trains in it, or what to resume is not there.
    """
    digest = config_hash(config)
    if resume is None:
        return _fresh(root / method, digest, run_dir, ()).lock()
    if resume != "auto":
        return _from_path(Path(resume), run_dir).lock()
    path = Path(run_dir) if run_dir else _newest_unfinished(root / method, digest)
    if path is None:
        note = f"resume=auto: no unfinished run of this config under {root / method}; a fresh start"
        return _fresh(root / method, digest, None, (note,)).lock()
    path.mkdir(parents=True, exist_ok=True)
    return _continued(path).lock()


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for what is trained, not for where."""
    kept = {key: value for key, value in config.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a run as something that it was not.

    Args:
        before: The config that the run was started with.
        now: The one it is to be continued with; what only says how long and how it is watched may differ.

    Raises:
        InputError: Names every key that differs.
    """
    kept_before, kept_now = (dict(_leaves("", config)) for config in (before, now))
    changed = [key for key in sorted(kept_before.keys() | kept_now.keys()) if kept_before.get(key) != kept_now.get(key)]
    if changed:
        shown = ", ".join(f"{key}={kept_now.get(key)} (was {kept_before.get(key)})" for key in changed[:5])
        why = "a resumed run goes on as what it was, with the optimizer's and the schedule's state"
        instead = (
            "Type alignlab train --from RUN resume=RUN to continue it, or init_from=RUN to start anew from its model"
        )
        raise InputError(f"resuming with {shown}{', …' if len(changed) > 5 else ''}", why, instead)


def _leaves(path: str, tree: Any) -> Iterator[tuple[str, Any]]:
    if path in MAY_CHANGE:
        return
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(f"{path}.{key}" if path else key, value)
    else:
        yield path, tree


def read_status(path: Path) -> str | None:
    """Status of the run in a folder, None where there is no readable summary."""
    try:
        return json.loads((path / "summary.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return None


def _fresh(parent: Path, digest: str, run_dir: str | None, notes: tuple[str, ...]) -> RunFolder:
    if run_dir is None:
        return RunFolder(_new_folder(parent, digest), notes=notes)
    path = Path(run_dir)
    if _holds_run(path):
        instead = "Type resume=auto to continue it, or give another run_dir="
        raise InputError(f"run_dir={path}", f"the folder already holds a run (status {read_status(path)})", instead)
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path, notes=notes)


def _new_folder(parent: Path, digest: str) -> Path:
    """A folder that nobody else has, also where two runs of one config start in the same second."""
    moment, number = time.strftime("%Y%m%d-%H%M%S"), 1
    while True:
        path = parent / (f"{moment}-{digest}" if number == 1 else f"{moment}.{number}-{digest}")
        try:
            path.mkdir(parents=True)  # atomic: of two processes one gets it
            return path
        except FileExistsError:
            number += 1


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("config.yaml", "summary.json", "checkpoints"))


def _newest_unfinished(parent: Path, digest: str) -> Path | None:
    found = [path for path in parent.glob(f"*-{digest}") if path.is_dir() and read_status(path) != "done"]
    # A run that was killed before its first checkpoint does not hide an older one that can be continued.
    return max(found, key=lambda path: (any((path / "checkpoints").glob("step-*")), path.name), default=None)


def _continued(path: Path) -> RunFolder:
    """Continue the run in a folder from its newest whole checkpoint, or begin it."""
    checkpoint, notes = newest_valid(path / "checkpoints")
    if checkpoint is None:
        why = "no whole checkpoint there" if _holds_run(path) else "no run there yet"
        return RunFolder(path, notes=(*notes, f"{path}: {why}; a fresh start"))
    return RunFolder(path, checkpoint, (*notes, f"Resuming {path} after step {checkpoint.step:,}"))


def _from_path(resume: Path, run_dir: str | None) -> RunFolder:
    """Continue from a run folder or a checkpoint, in its run's folder or as a new run in ``run_dir``."""
    asked = f"resume={resume}"
    if not resume.is_dir():
        raise InputError(asked, "there is no such folder", "Give a run folder, a checkpoint folder, or resume=auto")
    is_run = not (resume / STATE).exists() and resume.resolve().parent.name != "checkpoints"
    found, notes = newest_valid(resume / "checkpoints") if is_run else (open_checkpoint(resume), [])
    if found is None:
        instead = "Give a folder that holds one, or leave resume out to start anew"
        raise InputError(asked, " and ".join(notes) or "the folder holds no checkpoint", instead)
    home = resume if is_run else found.folder.parent.parent
    if run_dir is None or Path(run_dir).resolve() == home.resolve():
        return RunFolder(home, found, (*notes, f"Resuming {home} after step {found.step:,}"))
    folder = _fresh(home, "", run_dir, ())
    return RunFolder(folder.path, found, (*notes, f"A new run in {run_dir} from {found.folder} (step {found.step:,})"))
