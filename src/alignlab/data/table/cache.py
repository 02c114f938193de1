"""Token tables on disk, under a key of everything that decides their content.

A table lies in ``<cache_dir>/<key>``: ``rows.arrow`` (read by memory map), ``counts.json`` and ``manifest.json`` with
their checksums, which are compared whenever the table is opened; a damaged table is made again. It is written beside
and renamed when whole, by one process at a time, so a table is either complete or not there.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from alignlab import data, types
from alignlab.data.table.counts import Counts, Dropped
from alignlab.data.table.pack import pack
from alignlab.data.table.table import TokenTable, write_table
from alignlab.data.table.workers import tokenize_rows
from alignlab.data.tokenise.context import TokenSettings
from alignlab.data.tokenise.templates import choose_template
from alignlab.errors import InputError, raise_all
from alignlab.system.disk import read_manifest, write_manifest
from alignlab.types.rows import Row, Text, TokenRow

_log = logging.getLogger(__name__)
_BUILDING = ".building-"
_MAX_ERRORS = 5
_MAX_DETAILS = 3


def build_table(
    rows: Iterable[Row],
    source_fingerprint: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: TokenSettings,
    kind: type[Row],
    workers: int | None,
    cache_dir: str | Path | None,
    fresh: bool,
) -> TokenTable:
    """The token table of rows: from the cache where nothing that decides it has changed, else made and stored.

    Args:
        rows: All of this kind; read only where the cache has no table. Texts are packed into blocks.
        source_fingerprint: Content hash of where they come from.
        tokenizer: What encodes.
        settings: How.
        kind: Kind of row.
        workers: Processes that tokenise; 0 for this one, None to choose by the number of rows.
        cache_dir: Where tables are kept; None for the user's cache folder.
        fresh: Make the table again.

    Raises:
        InputError: Rows cannot be tokenised (the first few, together), or too many are cut or dropped.
    """
    key = table_key(source_fingerprint, tokenizer, settings, kind)
    cache = Path(cache_dir).expanduser() if cache_dir else user_cache()
    folder, began = cache / key, time.time()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _remove_leftovers(cache)
        if _is_whole(folder) and not (fresh and folder.stat().st_mtime < began):
            _log.info("tokens from the cache: %s", folder)
        else:
            _log.info("tokenising into %s", folder)
            _store(folder, rows, tokenizer, settings, kind, workers)
        table = TokenTable(folder)
    table.counts.check(settings.max_cut_fraction, settings.max_dropped_fraction)
    return table


def tokenize_stream(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, settings: TokenSettings, kind: type[Row]
) -> Iterator[TokenRow]:
    """Token rows as they come, in this process and without a cache; what is dropped is logged.

    Args:
        rows: All of this kind, possibly without end. Texts are packed into blocks.
        tokenizer: What encodes.
        settings: How.
        kind: Kind of row.

    Raises:
        InputError: At the first row that cannot be tokenised.
    """

    def kept() -> Iterator[TokenRow]:
        for outcome, _ in tokenize_rows(rows, tokenizer, settings, workers=0):
            if isinstance(outcome, InputError):
                raise outcome
            if isinstance(outcome, Dropped):
                _log.warning("dropped %s: %s", outcome.origin, outcome.detail or outcome.reason)
            else:
                yield outcome

    return _packed(kept(), settings, kind)


def table_key(
    source_fingerprint: str, tokenizer: PreTrainedTokenizerBase, settings: TokenSettings, kind: type[Row]
) -> str:
    """Hash of everything that decides a table's content: 16 hexadecimal digits of SHA-256.

    Args:
        source_fingerprint: Content hash of where the rows come from.
        tokenizer: Its vocabulary, normalisation, special tokens and the chosen template's text count.
        settings: All of them count, and so does the code of the data package.
        kind: Kind of row.
    """
    parts = {
        "source": source_fingerprint,
        "tokenizer": tokenizer_text(tokenizer),
        "template": choose_template(tokenizer, settings.chat_template).text,
        "settings": asdict(settings),
        "kind": kind.__name__,
        "code": code_text(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode(errors="surrogatepass")).hexdigest()[:16]


def tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's content, independent of where it was loaded from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return content + json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)


def code_text() -> str:
    """The source text of the data package and of the row kinds."""
    files = sorted([*Path(data.__file__).parent.rglob("*.py"), Path(types.__file__).with_name("rows.py")])
    return "".join(file.read_text(encoding="utf-8") for file in files)


def user_cache() -> Path:
    """Where token tables are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignlab" / "tokens"


def _packed(rows: Iterator[TokenRow], settings: TokenSettings, kind: type[Row]) -> Iterator[TokenRow]:
    if kind is not Text:
        return rows
    return pack(rows, settings.max_tokens_per_sequence, settings.cross_document_attention)


class _Tally:
    """Passes on kept rows while it counts all, and gathers errors."""

    def __init__(self, outcomes: Iterable[tuple[TokenRow | Dropped | InputError, Counts]]):
        self.outcomes, self.counts, self.num_details = outcomes, Counts(), 0

    def __iter__(self) -> Iterator[TokenRow]:
        errors: list[InputError] = []
        for outcome, counts in self.outcomes:
            self.counts += counts
            if isinstance(outcome, InputError):
                errors.append(outcome)
                if len(errors) == _MAX_ERRORS:
                    break
            elif isinstance(outcome, TokenRow):
                yield outcome
            elif outcome.detail and self.num_details < _MAX_DETAILS:
                self.num_details += 1
                _log.warning("dropped %s", outcome.detail)
        raise_all(errors)


def _store(
    folder: Path,
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    settings: TokenSettings,
    kind: type[Row],
    workers: int | None,
) -> None:
    """Tokenise, write beside the place, and put the whole table there at once; the caller holds the lock."""
    building = folder.with_name(f"{_BUILDING}{folder.name}")
    _remove(building)  # of a process that was killed, since the lock is ours
    try:
        with _progress() as progress:
            task = progress.add_task("tokenising", total=None)
            tally = _Tally(tokenize_rows(progress.track(rows, task_id=task), tokenizer, settings, workers))
            write_table(building, _packed(iter(tally), settings, kind), lambda: tally.counts)
        write_manifest(building)
        # What lies under the name of a key is a table of ours, damaged perhaps; who has it open keeps what it has read.
        _remove(folder)
        os.replace(building, folder)
    finally:
        _remove(building)


def _is_whole(folder: Path) -> bool:
    """Whether a table is there and undamaged; damage is told."""
    if not folder.exists():
        return False
    try:
        read_manifest(folder)
    except ValueError as error:
        _log.warning("the cached tokens in %s are damaged (%s) and are made again", folder, error)
        return False
    return True


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold what one process at a time holds while it looks for a table or makes it."""
    lock = _lock(folder)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _log.info("another process makes the same table; waiting for it: %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f".{folder.name}.lock"))


def _remove_leftovers(cache: Path) -> None:
    """Remove half-made tables of processes that were killed: those whose lock nobody holds."""
    for building in cache.glob(f"{_BUILDING}*"):
        with contextlib.suppress(Timeout), _lock(cache / building.name.removeprefix(_BUILDING)).acquire(blocking=False):
            _remove(building)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
