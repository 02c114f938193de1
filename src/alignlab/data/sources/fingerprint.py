"""Hashes of everything that decides the rows of a source."""

import hashlib
import json
from pathlib import Path
from typing import Any

from alignlab.data.sources.files import listing, reading


def file_hashes(path: str | Path) -> list[tuple[str, str]]:
    """Name and SHA-256 of every data file at a path.

    Args:
        path: A file or a folder.
    """
    return [(file.name, _sha256(file)) for file in listing(path)]


def digest(*parts: Any) -> str:
    """Hash of JSON values.

    Args:
        parts: JSON values, such as settings and hashes.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    with reading(file), open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
