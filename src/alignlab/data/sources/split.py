"""Training and validation rows: the source's own validation part, or rows held out of its training part."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, Protocol

from alignlab.errors import InputError
from alignlab.types.rows import Row, Text

Part = Literal["train", "validation"]

MAX_WORD = 200
"""Characters within which a text is expected to have a blank; some scripts have none."""


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


def split_rows(source: Source, part: Part, validation_size: float | None, streaming: bool = False) -> Iterator[Row]:
    """Rows of a part.

    Which rows are held out follows from their prompts alone: equal prompts stay together, however often the data holds
    them, and runs with other seeds are judged by the same rows.

    Args:
        source: Its own validation part wins over ``validation_size``.
        part: ``train`` or ``validation``.
        validation_size: Share (below 1) or number of training rows to hold out; ``None`` for no validation.
        streaming: Decide row by row, without reading all of them first; a number means the first rows.

    Raises:
        InputError: More rows are to be held out than there are.
    """
    if validation_size is None or next(source.rows("validation"), None) is not None:
        yield from source.rows(part)
        return
    if streaming:
        yield from _split_stream(source, part, validation_size)
        return
    digests = [digest(row) for row in source.rows("train")]
    if len(digests) == 1 and validation_size < 1:
        yield from split_document(next(source.rows("train")), part, validation_size)
        return
    limit = held_out_limit(digests, validation_size)
    for row, value in zip(source.rows("train"), digests, strict=True):
        if (value <= limit) == (part == "validation"):
            yield row


def digest(row: Row) -> int:
    """64 bits that stand for what a row asks: its text, its prompt, or a dialogue up to its last turn."""
    asked = getattr(row, "text", None) or getattr(row, "prompt", None) or getattr(row, "messages", ())[:-1]
    return int.from_bytes(hashlib.blake2b(repr(asked).encode(errors="surrogatepass"), digest_size=8).digest())


def held_out_limit(digests: list[int], validation_size: float) -> int:
    """Largest digest that is held out, so that the share or number asked for lies at or below it.

    Args:
        digests: Of every row.
        validation_size: Share (below 1) or number of rows; at least one is held out.

    Raises:
        InputError: None would be left to train on.
    """
    count = max(1, round(len(digests) * validation_size) if validation_size < 1 else int(validation_size))
    if count < len(digests):
        limit = sorted(digests)[count - 1]
        if limit < max(digests):
            return limit
    raise InputError(
        f"data.validation_size={validation_size:g}",
        f"that holds out {count} of {len(digests)} rows ({len(set(digests))} prompts), and none is left to train on",
        "Type a smaller number, or data.validation_size=null for no validation",
    )


def _split_stream(source: Source, part: Part, validation_size: float) -> Iterator[Row]:
    for number, row in enumerate(source.rows("train")):
        if validation_size < 1:
            held_out = digest(row) < validation_size * 2**64
        elif part == "validation" and number >= validation_size:
            return
        else:
            held_out = number < validation_size
        if held_out == (part == "validation"):
            yield row


def split_document(row: Row, part: Part, validation_size: float) -> Iterator[Row]:
    """A single document: its end is held out, from a blank near the place on, or from the place itself.

    Args:
        row: The only row; anything but a text cannot be divided and trains without validation.
        part: ``train`` or ``validation``.
        validation_size: Share of the characters.
    """
    if not isinstance(row, Text):
        yield from [row] if part == "train" else []
        return
    place = int(len(row.text) * (1 - validation_size))
    blank = re.compile(r"\s").search(row.text, place, place + MAX_WORD)
    place = blank.end() if blank else place
    yield replace(row, text=row.text[:place] if part == "train" else row.text[place:])
