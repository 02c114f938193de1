"""Ways in which a file is damaged."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


def flip(path: Path, chance: random.Random) -> None:
    """One bit."""
    content = bytearray(path.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    """Its end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(max(1, len(content)))])


def shorten(path: Path, chance: random.Random) -> None:
    """Its last byte is missing."""
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path, chance: random.Random) -> None:
    """Something stands behind it."""
    path.write_bytes(path.read_bytes() + chance.randbytes(9))


def empty(path: Path, chance: random.Random) -> None:
    """Nothing in it."""
    path.write_bytes(b"")


def scramble(path: Path, chance: random.Random) -> None:
    """As many bytes of garbage."""
    path.write_bytes(chance.randbytes(path.stat().st_size))


def remove(path: Path, chance: random.Random) -> None:
    """It is not there."""
    path.unlink()


def make_folder(path: Path, chance: random.Random) -> None:
    """A folder has its name."""
    path.unlink()
    path.mkdir()


def dangle(path: Path, chance: random.Random) -> None:
    """A link to nowhere has its name."""
    path.unlink()
    path.symlink_to("nowhere")


def make_fifo(path: Path, chance: random.Random) -> None:
    """A pipe has its name, which nobody writes to."""
    path.unlink()
    os.mkfifo(path)


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": flip,
    "cut": cut,
    "shorten": shorten,
    "lengthen": lengthen,
    "empty": empty,
    "scramble": scramble,
    "remove": remove,
    "folder": make_folder,
    "dangling": dangle,
    "fifo": make_fifo,
}
FOR_LINKS = ("remove", "folder", "dangling")
"""Ways that change the link itself and not what it points to."""


def ways_for(path: Path) -> list[str]:
    """Ways that suit a path: a link or a file, empty or not."""
    if path.is_symlink():
        return list(FOR_LINKS)
    if path.stat().st_size == 0:
        return [name for name in WAYS if name not in ("flip", "cut", "shorten", "empty", "scramble")]
    return list(WAYS)


def damage(path: Path, way: str, chance: random.Random) -> None:
    """Damage a path in place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        WAYS[way](path, chance)
