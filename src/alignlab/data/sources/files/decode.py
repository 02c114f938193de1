"""Decode bytes to text: gzip under any name, byte-order marks, and the exact position of bytes that are not UTF-8."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from alignlab.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# Bytes that are not UTF-8 are read as these code points (PEP 383), so that an error can name the line and the column.
UNDECODED = re.compile("[\udc80-\udcff]")


@contextmanager
def open_text(path: Path, name: str, newline: str | None = None) -> Iterator[TextIO]:
    """Open a file as text, plain or gzip, UTF-8 or UTF-16 by its byte-order mark.

    Args:
        path: The file.
        name: Name of the file in error messages.
        newline: As in ``open``: None reads CR, CRLF and LF all as LF; ``""`` keeps them.

    Raises:
        InputError: The compressed data are damaged, or a file with a UTF-16 mark is not UTF-16.
    """
    with open(path, "rb") as raw:
        binary = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(GZIP_MAGIC) else raw
        try:
            start = binary.peek(3)
            encoding = next((encoding for mark, encoding in ENCODINGS.items() if start.startswith(mark)), "utf-8")
            errors = "strict" if encoding == "utf-16" else "surrogateescape"
            yield io.TextIOWrapper(binary, encoding=encoding, errors=errors, newline=newline)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(name, f"the gzip data are damaged ({error})", "Copy or download the file again") from error
        except UnicodeDecodeError as error:
            why = f"begins with a UTF-16 byte-order mark and is not UTF-16 at byte {error.start}"
            raise InputError(name, why, "Save it as UTF-8") from error


def undecoded(text: str) -> str | None:
    """Describe the first byte of a text that was not UTF-8; None if there is none."""
    try:
        text.encode()  # much faster than the search
        return None
    except UnicodeEncodeError:
        found = UNDECODED.search(text)
    column = found.start() - text.rfind("\n", 0, found.start())
    return f"byte 0x{ord(found[0]) - 0xDC00:02X} in column {column} is not UTF-8"


def require_decoded(name: str, text: str) -> None:
    """Check that a whole text was UTF-8.

    Raises:
        InputError: It was not; the error names the line and the column of the first such byte.
    """
    if problem := undecoded(text):
        line = text.count("\n", 0, UNDECODED.search(text).start()) + 1
        raise InputError(f"{name}:{line}", problem, how_to_convert(name))


def how_to_convert(name: str) -> str:
    """Describe how to convert a file to UTF-8."""
    return (
        f"Save it as UTF-8: iconv -f GB18030 -t UTF-8 {name} > utf8_{name} (or -f with the encoding it was saved in); "
        "or, if only single rows are damaged, correct them or type data.bad_rows=drop"
    )
