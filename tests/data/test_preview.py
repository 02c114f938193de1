import io
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from alignlab.data.preview import (
    Bin,
    decode_segments,
    length_histogram,
    preview_html,
    preview_terminal,
    row_text,
    write_page,
)
from alignlab.data.table.cache import build_table
from alignlab.data.tokenise.rows import tokenize
from alignlab.errors import InputError
from alignlab.types.rows import Demonstration, Preference
from tests.data.tokenise.tiny_tokenizers import CHATML, FORGETFUL, assistant, byte_tokenizer, token_settings, user


@pytest.fixture
def tokenizer():
    return byte_tokenizer(template=CHATML)


@pytest.fixture
def table(tokenizer, tmp_path):
    rows = [
        Demonstration(origin=f"f<{i}>:1", messages=(user("<b>Frage ä</b>" * i), assistant("1 < 2 & 这是")))
        for i in range(1, 4)
    ]
    return build_table(iter(rows), "abc", tokenizer, token_settings(), Demonstration, 0, tmp_path, False)


class Marked(HTMLParser):
    """The text inside <mark> and the text inside <pre>."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.marked, self.inside, self.links = [], "", "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.marked += data * ("mark" in self.open)
        self.inside += data * ("pre" in self.open and "span" not in self.open)


def test_segments_follow_mask_and_pieces(tokenizer):
    row = Preference(origin="p:1", prompt=(user("Q"),), chosen=(assistant("A"),), rejected=((assistant("B"),),))
    segments = decode_segments(tokenize(row, tokenizer, token_settings()), tokenizer)
    assert segments == [
        ("prompt", False, "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"),
        ("completion 1", True, "A<|im_end|>"),
        ("completion 2", True, "B<|im_end|>"),
    ]


def test_terminal_colours_exactly_the_supervised_text(table, tokenizer):
    text = row_text(table[0], tokenizer)
    green = [text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)]
    assert green == ["⟦1 < 2 & 这是<|im_end|>⟧"]


def test_terminal_shows_rows_histograms_and_counts(table, tokenizer):
    console = Console(file=io.StringIO(), width=200)
    console.print(preview_terminal(table, tokenizer, [0, 2], ["columns not read: id"]))
    printed = console.file.getvalue()
    assert "f<1>:1" in printed and "f<3>:1" in printed and "f<2>:1" not in printed
    assert "supervised tokens per row" in printed and "█" in printed
    assert f"{table.counts}\ncolumns not read: id" in printed


def test_html_marks_exactly_the_supervised_text(table, tokenizer):
    page = Marked(preview_html(table, tokenizer, [0, 1], title="My <data>"))
    assert page.marked == "1 < 2 & 这是<|im_end|>" * 2
    assert page.inside == tokenizer.decode(table[0].tokens) + tokenizer.decode(table[1].tokens)


def test_html_needs_nothing_beside_it_and_escapes_data(table, tokenizer):
    html = preview_html(table, tokenizer, [0], title="My <data>")
    assert not Marked(html).links and "<script" not in html
    assert "<b>" not in html and "My &lt;data&gt;" in html and "f&lt;1&gt;:1" in html
    assert str(table.counts) in html


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([], []),
        ([5], [Bin(5, 5, 1)]),
        ([1, 2, 3, 4], [Bin(1, 2, 2), Bin(3, 4, 2)]),
        ([1, 1, 9], [Bin(1, 5, 2), Bin(6, 9, 1)]),
    ],
)
def test_histogram_counts_every_row_once(lengths, bins):
    assert length_histogram(np.array(lengths, dtype=int), num_bins=2) == bins


def test_only_a_page_of_its_own_is_overwritten(table, tokenizer, tmp_path):
    file, mine = tmp_path / "pages" / "page.html", tmp_path / "README.md"
    for _ in range(2):
        write_page(file, preview_html(table, tokenizer, [0]))
    mine.write_text("mine")
    for path, said in ((mine, "is not a page"), (tmp_path, "cannot be written"), (mine / "x", "cannot be")):
        with pytest.raises(InputError, match=said):
            write_page(path, "new")
    assert mine.read_text() == "mine"


def test_a_branch_is_shown_with_what_it_continues():
    tokenizer = byte_tokenizer(template=FORGETFUL)
    row = Demonstration(origin="f:1", messages=(user("Q"), assistant("A"), user("R"), assistant("B")))
    pieces = [segment.piece for segment in decode_segments(tokenize(row, tokenizer, token_settings()), tokenizer)]
    opening = len(tokenizer.encode("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"))
    assert pieces == ["prompt", "completion 1", f"completion 1, branch 2, continues the first {opening} tokens"]
