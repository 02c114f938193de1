"""Plain texts of rows, for training a tokenizer."""

from collections.abc import Iterable, Iterator

from alignlab.types.rows import Row, Text


def row_texts(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the texts of rows: documents, or the contents of all their messages.

    Args:
        rows: Rows of any kind.
    """
    for row in rows:
        if isinstance(row, Text):
            yield row.text
        for field in ("messages", "prompt", "chosen", "completion"):
            for message in getattr(row, field, ()):
                yield str(message.get("content") or "")
        for completion in getattr(row, "rejected", ()):
            for message in completion:
                yield str(message.get("content") or "")
