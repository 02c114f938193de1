"""Training and validation rows: the source's own validation part, or rows held out of its training part."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal, Protocol

import numpy as np

from alignlab.batches import Row, Text
from alignlab.errors import InputError

Part = Literal["train", "validation"]


class Source(Protocol):
    """Where rows come from; see ``sources.py`` and ``arithmetic/``."""

    dropped: Counter[str]
    """Rows left out by reason, once they were read."""

    def rows(self, split: Part) -> Iterator[Row]:
        """The rows of a part, always in the same order; none where the source has no such part."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the rows."""
        ...


def split_rows(source: Source, part: Part, validation_size: float | None, seed: int) -> Iterator[Row]:
    """Rows of a part.

    Args:
        source: Its own validation part wins over ``validation_size``.
        part: ``train`` or ``validation``.
        validation_size: Share (below 1) or number of training rows to hold out; ``None`` for no validation.
        seed: Decides which rows are held out.

    Raises:
        InputError: More rows are to be held out than there are.
    """
    if validation_size is None or next(source.rows("validation"), None) is not None:
        yield from source.rows(part)
        return
    num_rows = sum(1 for _ in islice(source.rows("train"), 2))
    if num_rows == 1 and validation_size < 1:
        yield from split_document(next(source.rows("train")), part, validation_size)
        return
    held_out = choose_held_out(sum(1 for _ in source.rows("train")), validation_size, seed)
    for number, row in enumerate(source.rows("train")):
        if (number in held_out) == (part == "validation"):
            yield row


def split_document(row: Row, part: Part, validation_size: float) -> Iterator[Row]:
    """A single document: its end is held out, from a blank space on.

    Args:
        row: The only row; anything but a text cannot be divided and trains without validation.
        part: ``train`` or ``validation``.
        validation_size: Share of the characters.
    """
    if not isinstance(row, Text):
        yield from [row] if part == "train" else []
        return
    place = row.text.rfind(" ", 0, int(len(row.text) * (1 - validation_size))) + 1
    yield replace(row, text=row.text[:place] if part == "train" else row.text[place:])


def choose_held_out(num_rows: int, validation_size: float, seed: int) -> set[int]:
    """Numbers of the rows that are held out: at least one, chosen by the seed alone."""
    count = round(num_rows * validation_size) if validation_size < 1 else int(validation_size)
    if max(1, count) >= num_rows:
        raise InputError(
            f"data.validation_size={validation_size:g}",
            f"that holds out {max(1, count)} of {num_rows} rows, and none is left to train on",
            "Type a smaller number, or data.validation_size=null for no validation",
        )
    return set(np.random.default_rng([seed, num_rows]).permutation(num_rows)[: max(1, count)].tolist())
