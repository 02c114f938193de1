"""Preview of what the model sees: decoded rows with coloured supervised tokens, length histograms, and counts."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import count, groupby
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
    """A run of tokens in one piece of a row, all supervised or all not.

    Args:
        piece: ``prompt``, ``completion 1``, ``completion 2``, …; prefixed with the group if the row has several. Of a
            branch also ``continues N tokens``, by which it shares the beginning of the row.
        supervised: Whether the loss counts the tokens.
        text: Decoded text, special tokens included.
    """

    piece: str
    supervised: bool
    text: str


class Bin(NamedTuple):
    """One bar of a histogram: the number of rows with ``low`` to ``high`` tokens, both included."""

    low: int
    high: int
    count: int


def decode_segments(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """Decode a row into segments of supervised and of context tokens.

    Args:
        row: The row to decode.
        tokenizer: The tokenizer that encoded the row.
    """
    tagged = zip(_pieces(row), row.supervised, row.tokens, strict=True)
    return [
        Segment(*key, tokenizer.decode([token for *_, token in group], clean_up_tokenization_spaces=False))
        for key, group in groupby(tagged, key=lambda item: item[:2])
    ]


def length_histogram(lengths: np.ndarray, num_bins: int = 12) -> list[Bin]:
    """Count rows by length, in bins of equal width.

    Args:
        lengths: Tokens per row. Shape ``[rows]``.
        num_bins: Maximum number of bins.
    """
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // num_bins)
    counts = np.bincount((lengths - low) // width)
    return [Bin(low + i * width, min(low + (i + 1) * width - 1, high), int(n)) for i, n in enumerate(counts)]


def preview_terminal(
    table: TokenTable, tokenizer: PreTrainedTokenizerBase, indices: Iterable[int], notes: Sequence[str]
) -> RenderableType:
    """Render rows, histograms and counts for a rich console.

    Args:
        table: Token rows.
        tokenizer: The tokenizer that encoded the rows.
        indices: Rows to show.
        notes: Lines about the data, after the counts.
    """
    parts: list[RenderableType] = [row_text(table[index], tokenizer) for index in indices]
    for name, lengths in _histograms(table):
        bins = length_histogram(lengths)
        most = max((bin_.count for bin_ in bins), default=1)
        lines = [f"{b.low:>8,} – {b.high:<8,} {b.count:>8,} {'█' * -(-b.count * _BAR_WIDTH // most)}" for b in bins]
        parts.append(Text("\n".join([f"{name} per row", *lines, ""])))
    return Group(*parts, Text("\n".join([str(table.counts), *notes])))


def row_text(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> Text:
    """Render one row for a rich console: supervised tokens green and between ⟦ and ⟧, the others grey.

    Args:
        row: The row to show.
        tokenizer: The tokenizer that encoded the row.
    """
    text = Text(f"── {row.origin} ({_summary(row)})\n", style="bold")
    for piece, segments in groupby(decode_segments(row, tokenizer), key=lambda segment: segment.piece):
        text.append(f"[{piece}]\n", style="italic cyan")
        for segment in segments:
            style = _SUPERVISED if segment.supervised else f"not bold {_CONTEXT}"
            text.append(f"⟦{segment.text}⟧" if segment.supervised else segment.text, style=style)
        text.append("\n")
    return text


def preview_html(
    table: TokenTable, tokenizer: PreTrainedTokenizerBase, indices: Iterable[int], title: str = "alignlab preview"
) -> str:
    """Render the same preview as one self-contained HTML page.

    Args:
        table: Token rows.
        tokenizer: The tokenizer that encoded the rows.
        indices: Rows to show.
        title: Heading of the page.
    """
    return _PAGE.format(
        generator=_GENERATOR,
        title=escape(title),
        counts=escape(str(table.counts)),
        histograms="\n".join(_html_histogram(name, length_histogram(lengths)) for name, lengths in _histograms(table)),
        rows="\n".join(_html_row(table[index], tokenizer) for index in indices),
    )


def write_page(path: Path, page: str) -> None:
    """Write a page of ``preview_html``. An existing file is replaced only if it is such a page.

    Args:
        path: File to write.
        page: HTML text.

    Raises:
        InputError: The path holds something else, or the file cannot be written.
    """
    asked = f"preview.html={path}"
    try:
        if path.exists() and _GENERATOR not in path.read_bytes()[:500].decode(errors="replace"):
            raise InputError(asked, "it exists and is not a page that alignlab wrote", "Name another file")
        write_text(path, page)
    except OSError as error:
        raise InputError(asked, f"it cannot be written: {error}", "Name another file") from error


def _pieces(row: TokenRow) -> Iterator[str]:
    """Yield, for each token, the name of the piece that it belongs to."""
    number = count()
    for index, (prompt, *completions) in enumerate(row.groups, start=1):
        group = f"group {index}, " if len(row.groups) > 1 else ""
        yield from [f"{group}prompt"] * prompt
        for completion, length in enumerate(completions, start=1):
            name = f"{group}completion {completion}"
            first, *others = row.branches.get(next(number), [[prompt, length]])
            yield from [name] * first[1]
            for branch, (fork, tokens) in enumerate(others, start=2):
                yield from [f"{name}, branch {branch}, continues the first {fork} tokens"] * tokens


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
