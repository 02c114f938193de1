"""Read files as records with ``read(path)``.

| suffix | records | origin |
|---|---|---|
| ``.json`` ``.jsonl`` ``.ndjson`` | JSON rows in any shape (see ``json_rows``) | ``name:line`` or ``name:line[row]`` |
| ``.csv`` ``.tsv`` | one object of texts per row, with the names of the header line | ``name:line`` |
| ``.parquet`` | one object per row | ``name[row]`` |
| ``.txt`` | one object ``{"text": …}``: the file is one document | ``name:1`` |

All files but Parquet may be compressed with gzip, with or without the suffix ``.gz``. A folder means all such files in
it and in its subfolders, sorted by path. Lines count from 1, rows from 0. Text is UTF-8 with or without a byte-order
mark, or UTF-16 with one. Line ends are LF, CRLF or CR.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from alignlab.data.sources.files.decode import open_text, require_decoded
from alignlab.data.sources.files.json_rows import json_records
from alignlab.data.sources.files.record import Record, faulty, is_dialogue
from alignlab.data.sources.files.tables import csv_records, parquet_records
from alignlab.errors import InputError, nearest
from alignlab.system.paths import reason, typed_path

__all__ = ["Record", "faulty", "is_dialogue", "listing", "read", "reading"]


def _text_records(name: str, stream: TextIO) -> Iterator[Record]:
    text = stream.read()
    require_decoded(name, text)
    if not text.strip():
        raise InputError(name, "the file is empty", "Point data.path at a file with text")
    yield Record(f"{name}:1", {"text": text})


TEXT_READERS = {
    ".json": json_records,
    ".jsonl": json_records,
    ".ndjson": json_records,
    ".csv": csv_records,
    ".tsv": partial(csv_records, delimiter="\t"),
    ".txt": _text_records,
}
SUFFIXES = (*TEXT_READERS, ".parquet")


def read(path: str | Path) -> Iterator[Record]:
    """Read the records of a file, or of all files of a folder, lazily and in order.

    Args:
        path: A file or a folder.

    Raises:
        InputError: There is no such file, its kind is unknown, or it cannot be read. An error in a single record is not
            raised but stored as its ``fault``.
    """
    root = typed_path(path, "data.path")
    for file in listing(root):
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        with reading(file):
            yield from _read_file(file, name)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise an ``InputError`` for a file that is gone, that may not be read, or that is on a failing disk.

    Args:
        file: The file, named in the error.

    Raises:
        InputError: It cannot be read.
    """
    try:
        yield
    except OSError as error:
        instead = "Put it back, or make it readable"
        raise InputError(f"data.path={file}", f"it cannot be read ({reason(error)})", instead) from error


def listing(path: str | Path) -> list[Path]:
    """List the data files at a path, sorted.

    Args:
        path: A file or a folder.

    Raises:
        InputError: There is no such file or folder, or it holds nothing that can be read.
    """
    path = typed_path(path, "data.path")
    if not path.exists():
        siblings = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else f"There is no folder {path.parent}"
        raise InputError(f"data.path={path}", "there is no such file or folder", hint)
    if not (path.is_file() or path.is_dir()):
        why = "it is neither a file nor a folder, but a pipe, a socket or a device"
        raise InputError(f"data.path={path}", why, "Save it as a file first")
    with reading(path):
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _suffix(file) in SUFFIXES)
        files = [file for file in files if file.is_file()]
    if not files or _suffix(files[0]) not in SUFFIXES:
        why = "the folder holds no file of a known kind" if path.is_dir() else "a file of an unknown kind"
        raise InputError(f"data.path={path}", why, f"The kinds are {', '.join(SUFFIXES)}, and with .gz after them")
    return files


def _suffix(path: Path) -> str:
    name = Path(path.name.lower().removesuffix(".gz"))
    return "" if path.name.startswith(".") else name.suffix


def _read_file(path: Path, name: str) -> Iterator[Record]:
    suffix = _suffix(path)
    if suffix == ".parquet":
        yield from parquet_records(name, path)
        return
    # Quoted cells of a CSV keep their line ends; everywhere else CR and CRLF are line ends like LF.
    with open_text(path, name, newline="" if suffix in (".csv", ".tsv") else None) as stream:
        yield from TEXT_READERS[suffix](name, stream)
