"""Choice of a run's folder, and of the checkpoint from which it starts."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.run_folder.changes import NOT_HASHED
from alignlab.run_folder.folder import RunFolder, read_status
from alignlab.run_folder.location import names_in, refuse_foreign, refuse_unsafe
from alignlab.run_folder.overwrite import refuse_unless_run, remove_run
from alignlab.run_folder.storage import STATE, newest_valid, open_checkpoint
from alignlab.system.credentials import blanked


def make_run_folder(
    config: Mapping[str, Any],
    *,
    method: str,
    run_dir: str | None,
    resume: str | None,
    overwrite: bool,
    root: Path = Path("runs"),
) -> RunFolder:
    """Choose the folder of a run, create it and lock it. One process per job calls this.

    A folder is used only if it does not exist, is empty, or holds a run to continue. Nothing is written before that is
    checked.

    ====================  =============================================================================================
    ``resume``            folder and start
    ====================  =============================================================================================
    None                  ``run_dir``, which must not hold a run, or a new folder under ``root``; a fresh start
    ``auto``              ``run_dir``, or the newest run of the same config that is not done; from its newest complete
                          checkpoint, or a fresh start if that would overwrite nothing
    a run folder          from its newest complete checkpoint, in that folder, or in ``run_dir`` as a branch
    a checkpoint folder   from it, in ``run_dir`` as a branch, or in its run's folder if it is the newest there
    ====================  =============================================================================================

    Args:
        config: The resolved config as plain containers; its hash is part of the folder's name.
        method: Short name of the method.
        run_dir: Folder that the user asked for.
        resume: What the user asked to resume.
        overwrite: Remove the run in ``run_dir``, if there is one; see ``overwrite``.
        root: Parent of folders whose name is not given.

    Raises:
        InputError: The folder may not be used for this run (see ``location``), it holds another run, a fresh start
            would overwrite its content, another process trains in it, or there is nothing to resume.
    """
    digest = config_hash(config)
    if run_dir is not None:
        refuse_unsafe(Path(run_dir), f"run_dir={run_dir}")
    if overwrite:
        return _overwritten(run_dir, resume)
    if resume is None:
        return _fresh(root / method, digest, run_dir, ()).lock()
    if resume != "auto":
        return _from_path(Path(resume), run_dir).lock()
    path = Path(run_dir) if run_dir else _newest_unfinished(root / method, digest)
    if path is None:
        note = f"resume=auto: no unfinished run of this config under {root / method}; a fresh start"
        return _fresh(root / method, digest, None, (note,)).lock()
    return _continued(path).lock()


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of the settings that decide what is trained: 8 hexadecimal digits of SHA-256."""
    kept = blanked({key: value for key, value in config.items() if key not in NOT_HASHED})
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _fresh(parent: Path, digest: str, run_dir: str | None, notes: tuple[str, ...]) -> RunFolder:
    if run_dir is None:
        return RunFolder(_new_folder(parent, digest), notes=notes)
    path = Path(run_dir)
    if _holds_run(path):
        instead = "Type resume=auto to continue it, overwrite=true to remove it, or give another run_dir="
        raise InputError(f"run_dir={path}", f"the folder already holds a run (status {read_status(path)})", instead)
    refuse_foreign(path, f"run_dir={path}")
    return RunFolder(path, notes=notes, before=_make(path))


def _overwritten(run_dir: str | None, resume: str | None) -> RunFolder:
    """Remove the run in a folder and start anew there."""
    if resume is not None:
        why = "the run to resume would be removed"
        raise InputError(f"overwrite=true resume={resume}", why, "Leave one of the two out")
    if run_dir is None:
        why = "a run without run_dir gets a new folder, so there is nothing to overwrite"
        raise InputError("overwrite=true", why, "Type run_dir=FOLDER too, or leave overwrite out")
    path, asked = Path(run_dir), f"run_dir={run_dir} overwrite=true"
    if not _holds_run(path):
        return _fresh(path, "", run_dir, ()).lock()
    refuse_unless_run(path, asked)  # before the lock, which is a file
    folder = RunFolder(path, notes=(f"overwrite=true: the run that was in {path} is removed",)).lock()
    try:
        remove_run(path, asked)
    except BaseException:
        folder.unlock()
        raise
    return replace(folder, before=frozenset(names_in(path)))


def _make(path: Path) -> frozenset[str] | None:
    """Create a folder if it does not exist; return the names in an existing one, None for a new one."""
    if path.is_dir():
        return frozenset(names_in(path))
    path.mkdir(parents=True)
    return None


def _new_folder(parent: Path, digest: str) -> Path:
    """Create a new folder, even if two runs of one config start in the same second."""
    moment, number = time.strftime("%Y%m%d-%H%M%S"), 1
    while True:
        path = parent / (f"{moment}-{digest}" if number == 1 else f"{moment}.{number}-{digest}")
        try:
            path.mkdir(parents=True)  # atomic: only one of two processes creates it
            return path
        except FileExistsError:
            number += 1


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in ("config.yaml", "summary.json", "checkpoints"))


def _newest_unfinished(parent: Path, digest: str) -> Path | None:
    found = [path for path in parent.glob(f"*-{digest}") if path.is_dir() and read_status(path) != "done"]
    # Prefer a run with a checkpoint to a newer run that was killed before its first one.
    return max(found, key=lambda path: (any((path / "checkpoints").glob("step-*")), path.name), default=None)


def _continued(path: Path) -> RunFolder:
    """Continue the run in a folder from its newest complete checkpoint, or start it."""
    if not _holds_run(path):
        return _fresh(path, "", str(path), (f"{path}: no run there yet; a fresh start",))
    checkpoint, notes = newest_valid(path / "checkpoints")
    before = frozenset(names_in(path))
    if checkpoint is not None:
        return RunFolder(path, checkpoint, (*notes, f"Resuming {path} after step {checkpoint.step:,}"), before)
    if any((path / "checkpoints").glob("step-*")) or (path / "model").exists() or read_status(path) == "done":
        why = " and ".join(notes) or f"the run there (status {read_status(path)}) has no checkpoint to resume from"
        instead = "Give another run_dir=; a fresh start would overwrite what is there"
        raise InputError(f"run_dir={path} resume=auto", why, instead)
    return RunFolder(path, None, (*notes, f"{path}: no checkpoint there; a fresh start"), before)


def _from_path(resume: Path, run_dir: str | None) -> RunFolder:
    """Resume from a run folder or a checkpoint, in its run's folder or as a branch in ``run_dir``."""
    asked = f"resume={resume}"
    if not resume.is_dir():
        raise InputError(asked, "there is no such folder", "Give a run folder, a checkpoint folder, or resume=auto")
    is_run = not (resume / STATE).exists() and resume.resolve().parent.name != "checkpoints"
    found, notes = newest_valid(resume / "checkpoints") if is_run else (open_checkpoint(resume), [])
    if found is None:
        instead = "Give a folder that holds one, or leave resume out to start anew"
        raise InputError(asked, " and ".join(notes) or "the folder holds no checkpoint", instead)
    home = resume if is_run else found.folder.parent.parent
    if run_dir is not None and Path(run_dir).resolve() != home.resolve():
        folder = _fresh(home, "", run_dir, ())
        note = f"A branch in {run_dir} of {found.folder} (step {found.step:,})"
        return RunFolder(folder.path, found, (*notes, note), folder.before)
    newest, _ = newest_valid(home / "checkpoints")
    if newest is not None and newest.step > found.step:
        why = f"the run there has gone on to step {newest.step:,}, which would be overwritten"
        raise InputError(asked, why, f"Type run_dir=NEW for a branch, or resume={home} to resume from the newest")
    note = f"Resuming {home} after step {found.step:,}"
    return RunFolder(home, found, (*notes, note), frozenset(names_in(home)))
