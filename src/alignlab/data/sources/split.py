"""Split of training and validation rows: the source's own validation part, or rows held out of its training part."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from alignlab.errors import InputError
from alignlab.types.rows import Row, Text

Part = str
"""``train``, ``validation``, or ``validation/NAME`` of a source with named validation sets."""

MAX_WORD = 200
"""Characters after the split point that are searched for a blank; some scripts have none."""


class Source(Protocol):
    """Interface of a source of rows; see ``local.py``, ``mixture.py`` and ``arithmetic/``."""

    dropped: Counter[str]
    """Number of dropped rows by reason, once the rows were read."""

    def rows(self, split: Part) -> Iterator[Row]:
        """Yield the rows of a part, always in the same order; none if the source has no such part."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the rows."""
        ...


def split_rows(source: Source, part: Part, validation_size: float | None, streaming: bool = False) -> Iterator[Row]:
    """Yield the rows of a part.

    Rows are held out by their prompts alone: rows with equal prompts stay together, and runs with different seeds are
    evaluated on the same rows.

    Args:
        source: Source of the rows. If it has a validation part, ``validation_size`` is ignored.
        part: ``train``, ``validation``, or a named validation set of the source.
        validation_size: Share (below 1) or number of training rows to hold out; ``None`` for no validation.
        streaming: Decide row by row, without reading all rows first; a number then means the first rows.

    Raises:
        InputError: No row would be left to train on.
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
    """64-bit hash of a row's text, of its prompt, or of its dialogue without the last message."""
    asked = getattr(row, "text", None) or getattr(row, "prompt", None) or getattr(row, "messages", ())[:-1]
    return int.from_bytes(hashlib.blake2b(repr(asked).encode(errors="surrogatepass"), digest_size=8).digest())


def held_out_limit(digests: list[int], validation_size: float) -> int:
    """The largest digest to hold out, so that the requested share or number of rows has a digest up to it.

    Args:
        digests: Digest of every row.
        validation_size: Share (below 1) or number of rows to hold out; at least one row is held out.

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
    """Split a single document: hold out its end, from the first blank after the split point, or from the point itself.

    Args:
        row: The only row. A row that is not a ``Text`` cannot be divided; it is used for training, without validation.
        part: ``train`` or ``validation``.
        validation_size: Share of the characters to hold out.
    """
    if not isinstance(row, Text):
        yield from [row] if part == "train" else []
        return
    cut = int(len(row.text) * (1 - validation_size))
    blank = re.compile(r"\s").search(row.text, cut, cut + MAX_WORD)
    cut = blank.end() if blank else cut
    yield replace(row, text=row.text[:cut] if part == "train" else row.text[cut:])
