"""The surroundings of a run: packages, devices, and the code of alignlab and of the working folder."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from alignlab.system.credentials import masked
from alignlab.system.disk import write_text

ENVIRONMENT, CHANGES = "environment.json", "uncommitted.diff"

MAX_CHARACTERS = 2**20
"""Length of the differences that are kept; what is longer is cut."""

SECONDS = 10
"""How long git or the driver's tool may take."""


def write_environment(folder: Path) -> None:
    """Write ``environment.json``, and ``uncommitted.diff`` if files under version control have changes.

    Args:
        folder: Folder of the run; what an earlier start wrote is replaced.
    """
    places = _repositories()
    (folder / CHANGES).unlink(missing_ok=True)
    changes = "".join(f"# {name}\n{diff}\n" for name, root in places.items() if (diff := _git(root, "diff", "HEAD")))
    if changes:
        write_text(folder / CHANGES, masked(changes[:MAX_CHARACTERS]))
    write_text(folder / ENVIRONMENT, json.dumps(environment(places), indent=2) + "\n")


def environment(repositories: dict[str, Path]) -> dict[str, Any]:
    """Packages with their versions, Python, system, devices with their driver, and the commits of repositories.

    Args:
        repositories: Root folders by name.
    """
    packages = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions() if one.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "driver": _driver() if torch.cuda.is_available() else None,
        "code": {name: _commit(root) for name, root in repositories.items()},
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def _repositories() -> dict[str, Path]:
    """Roots of the repositories of alignlab and of the working folder, if they have any; one that is both once."""
    places = {"alignlab": Path(__file__).parent, "working folder": Path.cwd()}
    roots = {name: _git(place, "rev-parse", "--show-toplevel").strip() for name, place in places.items()}
    found = {name: Path(root) for name, root in roots.items() if root}
    is_one = len(found) > len(set(found.values()))
    return {"alignlab": found["alignlab"]} if is_one else found


def _commit(root: Path) -> str:
    """Commit of a repository, and whether files differ from it."""
    changed = " with changes" if _git(root, "status", "--porcelain") else ""
    return _git(root, "rev-parse", "HEAD").strip() + changed


def _git(folder: Path, *words: str) -> str:
    """What git says; empty if it is missing, slow or knows no repository."""
    return _output("git", "-C", str(folder), *words)


def _driver() -> str | None:
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0] if lines else None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
