"""Removal of an earlier run from its folder, on request: only a run of alignlab, and nothing that it did not write."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from alignlab.errors import InputError
from alignlab.run_folder import storage
from alignlab.run_folder.location import FOLDERS, OWN, SYSTEM, matches, names_in
from alignlab.run_folder.metrics_file import read_metrics
from alignlab.run_folder.plots import file_names
from alignlab.system.disk import LOCK, MANIFEST

CONFIG, CARD = "config.yaml", "README.md"
SECTIONS = {"method", "model", "data", "strategy", "optimizer", "trainer", "seed", "run_dir"}
"""Keys that every config of a run has."""

WANDB = ("run_id.txt", "latest-run", "debug*.log", "run-????????_??????-*", "offline-run-????????_??????-*")
TENSORBOARD = ("events.out.tfevents.*", "hparams.yaml")

INSTEAD = "Nothing is removed; move it away or delete the folder yourself, or name another run_dir="


def refuse_unless_run(path: Path, asked: str) -> None:
    """Check that a folder holds a run of alignlab and nothing else.

    Raises:
        InputError: It does not; the error names some of what is not of the run.
    """
    if not _is_config_of_run(path / CONFIG):
        raise InputError(asked, f"{path / CONFIG} is not the config of a run of alignlab", INSTEAD)
    if strangers := sorted(_strangers(path)):
        shown = f"{', '.join(strangers[:3])}{', …' if len(strangers) > 3 else ''}"
        raise InputError(asked, f"the folder holds files that no run wrote: {shown}", INSTEAD)


def remove_run(path: Path, asked: str) -> None:
    """Remove a run; the folder, its lock and files of the file system stay. Links are removed, not what they point to.

    Args:
        path: Folder of the run, locked by this process.
        asked: The setting as typed.

    Raises:
        InputError: As in ``refuse_unless_run``; nothing was removed then.
    """
    refuse_unless_run(path, asked)
    names = [name for name in names_in(path) if not matches(name, (LOCK, *SYSTEM))]
    # Folders first and the config last, so that a killed removal leaves what can still be recognised.
    for name in sorted(names, key=lambda name: (name == CONFIG, not (path / name).is_dir())):
        entry = path / name
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _is_config_of_run(file: Path) -> bool:
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        return config.keys() >= SECTIONS and "_target_" in config["method"]
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError, RecursionError):
        return False


def _strangers(path: Path) -> Iterator[str]:
    """Names, relative to the folder of a run, of what the run did not write."""
    yield from (name for name in names_in(path) if not matches(name, OWN))
    yield from (name for name in FOLDERS if (path / name).exists() and not (path / name).is_dir())
    plots = file_names(name for row in read_metrics(path / "metrics.csv") for name in row)
    saved = [name for name in names_in(path / "checkpoints") if storage.STEP_FOLDER.fullmatch(name)]
    known = {
        "plots": plots,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "mlflow": ("run_id.txt",),
        "trackio": ("run_name.txt",),
        "trace": ("rank-*.json",),
        "evaluation": ("evaluation.json", "completions.jsonl"),
        "checkpoints": (*saved, storage.LAST, storage.BEST, *storage.LEFTOVERS),
    }
    for folder, names in known.items():
        strange = (name for name in names_in(path / folder) if not matches(name, (*names, *SYSTEM)))
        yield from (f"{folder}/{name}" for name in strange)
    for folder in ("model", *(f"checkpoints/{name}" for name in (*saved, storage.LAST, storage.BEST))):
        yield from (f"{folder}/{name}" for name in _unlisted(path / folder))


def _unlisted(folder: Path) -> Iterator[str]:
    """Files below a folder that its manifest does not list; a link is removed without what it points to."""
    if folder.is_symlink():
        return
    listed = {MANIFEST, CARD} if folder.name == "model" else {MANIFEST}
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        listed |= json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].keys()
    for entry in folder.rglob("*"):
        name, is_folder = str(entry.relative_to(folder)), entry.is_dir() and not entry.is_symlink()
        if name not in listed and not is_folder and not matches(entry.name, SYSTEM):
            yield name
