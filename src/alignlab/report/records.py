"""Read the runs to be reported: run folders, sweeps and folders above them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from alignlab.errors import InputError
from alignlab.run_folder.environment import ENVIRONMENT
from alignlab.run_folder.location import FOLDERS, JOBS
from alignlab.run_folder.metrics_file import read_metrics

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors of reading a JSON file that is missing, damaged or has other content."""


@dataclass(frozen=True)
class Record:
    """A run, or a job of a sweep that has no run.

    Args:
        name: Short name, unique in a report.
        path: The run folder; None if there is none.
        status: ``done``, ``failed``, ``stopped``, ``running``, ``refused``, ….
        settings: Values of the config by dotted key.
        summary: Content of ``summary.json``; empty if there is none.
        reason: Last line of the log of a run that is not done; otherwise empty.
    """

    name: str
    path: Path | None
    status: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """The rows of metrics.csv."""
        return read_metrics(self.path / "metrics.csv") if self.path else []

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The records of samples.jsonl; damaged lines are left out."""
        file = self.path / "samples.jsonl" if self.path else None
        if file is None or not file.is_file():
            return []
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return [record for record in map(_parsed, lines) if isinstance(record, dict)]

    @cached_property
    def environment(self) -> Mapping[str, Any]:
        """The content of environment.json; empty if there is none."""
        try:
            return dict(json.loads((self.path / ENVIRONMENT).read_text(encoding="utf-8")).items()) if self.path else {}
        except UNREADABLE:
            return {}

    @property
    def metrics(self) -> Mapping[str, float]:
        """The final metrics."""
        return self.summary.get("metrics") or {}

    @property
    def before(self) -> Mapping[str, float]:
        """The metrics before the first step."""
        return self.summary.get("initial_metrics") or {}


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read all runs in some folders, each once, and the jobs of their sweeps that have no run.

    Args:
        paths: Run folders, folders of sweeps, and folders above them.

    Raises:
        InputError: A folder does not exist, or there is no run in any.
    """
    for path in paths:
        if not path.is_dir():
            raise InputError(f"from={path}", "there is no such folder", "Name run folders, sweeps or a folder of them")
    found: dict[Path, None] = {}
    without_run = []
    for entry in (entry for path in paths for entry in _entries(path)):
        if isinstance(entry, Path):
            found[entry.resolve()] = None
        else:
            without_run.append(entry)
    if not found and not without_run:
        why = "there is no run in it: no folder with config.yaml and summary.json"
        raise InputError(f"from={', '.join(map(str, paths))}", why, "Name run folders, sweeps or a folder of them")
    names = _short_names(list(found))
    runs = [_read(path, name) for path, name in names.items()]
    return runs + [_refused(entry, f"job {entry.get('job', '')}") for entry in without_run]


def _entries(folder: Path) -> Iterator[Path | Mapping[str, Any]]:
    """Yield the run folders at or below a folder, and the jobs of sweeps without a run."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        if {"config.yaml", "summary.json"} <= {*files}:
            folders[:] = [name for name in folders if name not in FOLDERS]  # no other run is in them
            yield Path(place)
        if JOBS in folders:
            folders.remove(JOBS)
            yield from _jobs(Path(place))


def _jobs(sweep: Path) -> Iterator[Path | Mapping[str, Any]]:
    """Yield the runs of a sweep, and the entries of its jobs without one."""
    for file in sorted(sweep.glob(f"{JOBS}/*/job.json")):
        entry = _parsed(file.read_text(encoding="utf-8", errors="replace"))
        if not isinstance(entry, dict):
            continue
        # Paths of runs are relative to the folder in which the sweep was started.
        places = [base / entry["run"] for base in (Path(), *sweep.resolve().parents)] if entry.get("run") else []
        run = next((place for place in places if (place / "summary.json").is_file()), None)
        yield entry if run is None else run


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read(path: Path, name: str) -> Record:
    try:
        summary = dict(json.loads((path / "summary.json").read_text(encoding="utf-8")).items())
    except UNREADABLE:
        summary = {}
    try:
        settings = flat(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
    except (*UNREADABLE, yaml.YAMLError):
        settings = {}
    status = str(summary.get("status", "unreadable"))
    return Record(name, path, status, settings, summary, "" if status == "done" else _last_line(path / "train.log"))


def _refused(entry: Mapping[str, Any], name: str) -> Record:
    words = (word.partition("=") for word in str(entry.get("overrides", "")).split())
    return Record(name, None, str(entry.get("status", "refused")), {key.lstrip("+"): value for key, _, value in words})


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings by dotted key; lists are values.

    Args:
        config: A config as plain containers.
        prefix: Key of the config itself, with a dot at its end.
    """
    if not isinstance(config, Mapping):
        return {prefix.removesuffix("."): config}
    return {key: value for name, node in config.items() for key, value in flat(node, f"{prefix}{name}.").items()}


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The last parts of each path, as many as make the names different."""
    names = {path: path.name for path in paths}
    if len(set(names.values())) < len(paths):
        names = {path: "/".join(path.parts[-2:]) for path in paths}
    return names if len(set(names.values())) == len(paths) else {path: str(path) for path in paths}
