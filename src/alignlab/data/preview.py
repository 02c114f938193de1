"""What the model will see: decoded rows with the supervised tokens coloured, length histograms, counts."""

from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from alignlab.data.table.table import TokenTable
from alignlab.errors import InputError
from alignlab.system.disk import write_text
from alignlab.types.rows import TokenRow

_SUPERVISED, _CONTEXT = "bold green", "bright_black"
_BAR_WIDTH = 40
_GENERATOR = '<meta name="generator" content="alignlab">'
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">{generator}<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; padding: 1em; color: #777 }}
mark {{ background: #cdeccf; color: #134d17 }}
.piece {{ display: block; font: 12px system-ui, sans-serif; color: #555; margin-top: .6em }}
td {{ padding: 0 .6em; text-align: right; font-variant-numeric: tabular-nums }}
.bar {{ display: block; height: .8em; background: #6b9; text-align: left }}
td.wide {{ width: 24em }}
</style></head><body>
<h1>{title}</h1>
<p>{counts}</p>
<p>Green tokens are supervised: they are the targets of the loss. Grey tokens are context.</p>
{histograms}
{rows}
</body></html>
"""


class Segment(NamedTuple):
    """Neighbouring tokens of one piece of a row that are alike.

    Args:
        piece: ``prompt``, or ``completion 1`` and on; with the group before it where a row has several.
        supervised: Whether the loss counts them.
        text: Decoded, special tokens shown.
    """

    piece: str
    supervised: bool
    text: str


class Bin(NamedTuple):
    """A bar of a histogram: ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    count: int


def decode_segments(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """The row as coloured text.

    Args:
        row: Any.
        tokenizer: That made it.
    """
    tagged = zip(_pieces(row.groups), row.supervised, row.tokens, strict=True)
    return [
        Segment(*key, tokenizer.decode([token for *_, token in group], clean_up_tokenization_spaces=False))
        for key, group in groupby(tagged, key=lambda item: item[:2])
    ]


def length_histogram(lengths: np.ndarray, num_bins: int = 12) -> list[Bin]:
    """Rows by length, in bins of equal width.

    Args:
        lengths: Tokens per row. Shape ``[rows]``.
        num_bins: At most so many.
    """
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // num_bins)
    numbers = np.bincount((lengths - low) // width)
    return [Bin(low + i * width, min(low + (i + 1) * width - 1, high), int(n)) for i, n in enumerate(numbers)]


def preview_terminal(table: TokenTable, tokenizer: PreTrainedTokenizerBase, indices: Iterable[int]) -> RenderableType:
    """Rows, histograms and counts for a rich console.

    Args:
        table: Token rows.
        tokenizer: That made them.
        indices: Rows to show.
    """
    parts: list[RenderableType] = [row_text(table[index], tokenizer) for index in indices]
    for name, lengths in _histograms(table):
        bins = length_histogram(lengths)
        most = max((bin_.count for bin_ in bins), default=1)
        lines = [f"{b.low:>8,} – {b.high:<8,} {b.count:>8,} {'█' * -(-b.count * _BAR_WIDTH // most)}" for b in bins]
        parts.append(Text("\n".join([f"{name} per row", *lines, ""])))
    return Group(*parts, Text(str(table.counts)))


def row_text(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> Text:
    """One row for a rich console: supervised tokens green, the others grey.

    Args:
        row: Any.
        tokenizer: That made it.
    """
    text = Text(f"── {row.origin} ({_summary(row)})\n", style="bold")
    for piece, segments in groupby(decode_segments(row, tokenizer), key=lambda segment: segment.piece):
        text.append(f"[{piece}]\n", style="italic cyan")
        for segment in segments:
            text.append(segment.text, style=f"not bold {_CONTEXT}" if not segment.supervised else _SUPERVISED)
        text.append("\n")
    return text


def preview_html(
    table: TokenTable, tokenizer: PreTrainedTokenizerBase, indices: Iterable[int], title: str = "alignlab preview"
) -> str:
    """The same as one HTML page that needs nothing beside it.

    Args:
        table: Token rows.
        tokenizer: That made them.
        indices: Rows to show.
        title: Heading.
    """
    return _PAGE.format(
        generator=_GENERATOR,
        title=escape(title),
        counts=escape(str(table.counts)),
        histograms="\n".join(_html_histogram(name, length_histogram(lengths)) for name, lengths in _histograms(table)),
        rows="\n".join(_html_row(table[index], tokenizer) for index in indices),
    )


def write_page(path: Path, page: str) -> None:
    """Write what ``preview_html`` made; only such a page is replaced.

    Args:
        path: File to write.
        page: Its content.

    Raises:
        InputError: Something else lies there, or it cannot be written.
    """
    asked = f"preview.html={path}"
    try:
        if path.exists() and _GENERATOR not in path.read_bytes()[:500].decode(errors="replace"):
            raise InputError(asked, "it exists and is no page of alignlab's", "Name another file")
        write_text(path, page)
    except OSError as error:
        raise InputError(asked, f"it cannot be written: {error}", "Name another file") from error


def _pieces(groups: list[list[int]]) -> Iterator[str]:
    """The name of the piece that each token belongs to."""
    for number, (prompt, *completions) in enumerate(groups, start=1):
        group = f"group {number}, " if len(groups) > 1 else ""
        yield from [f"{group}prompt"] * prompt
        for index, length in enumerate(completions, start=1):
            yield from [f"{group}completion {index}"] * length


def _histograms(table: TokenTable) -> list[tuple[str, np.ndarray]]:
    return [("tokens", table.lengths), ("supervised tokens", table.num_supervised)]


def _summary(row: TokenRow) -> str:
    return f"{len(row.tokens):,} tokens, {sum(row.supervised):,} supervised"


def _html_histogram(name: str, bins: list[Bin]) -> str:
    most = max((bin_.count for bin_ in bins), default=1)
    rows = "".join(
        f"<tr><td>{b.low:,} – {b.high:,}</td><td>{b.count:,}</td>"
        f'<td class="wide"><span class="bar" style="width:{100 * b.count / most:.1f}%"></span></td></tr>'
        for b in bins
    )
    return f"<h2>{escape(name)} per row</h2><table>{rows}</table>"


def _html_row(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> str:
    body = ""
    for piece, segments in groupby(decode_segments(row, tokenizer), key=lambda segment: segment.piece):
        body += f'<span class="piece">{escape(piece)}</span>'
        body += "".join(f"<mark>{escape(s.text)}</mark>" if s.supervised else escape(s.text) for s in segments)
    return f"<h3>{escape(row.origin)} ({_summary(row)})</h3><pre>{body}</pre>"
