"""Cache of token tables on disk, under a key of everything that decides their content.

A table is stored in ``<cache_dir>/<key>``: ``rows.arrow`` (read by memory map), ``counts.json``, and ``manifest.json``
with their checksums, which are verified whenever the table is opened; a damaged table is built again. One process at a
time writes a table, to a temporary folder that is renamed when complete, so a table is either complete or absent.
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
from alignlab.data.settings import TokenSettings
from alignlab.data.table.counts import Counts, Dropped
from alignlab.data.table.pack import pack
from alignlab.data.table.table import TokenTable, write_table
from alignlab.data.table.workers import tokenize_rows
from alignlab.data.tokenise.templates import choose_template
from alignlab.data.tokenise.truncate import TooLong, sum_up
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
    """Return the token table of rows: from the cache if nothing that decides its content has changed, else a new one.

    Args:
        rows: Rows of one kind; they are read only if the cache has no table. Texts are packed into blocks.
        source_fingerprint: Hash of the source's content.
        tokenizer: The tokenizer that encodes the rows.
        settings: How rows become tokens.
        kind: Kind of row.
        workers: Number of processes that tokenise; 0 for this one, None to choose by the number of rows.
        cache_dir: Folder of the tables; None for the user's cache folder.
        fresh: Build the table again.

    Raises:
        InputError: Rows cannot be tokenised (the first few, together), or too many are cut or dropped.
    """
    key = table_key(source_fingerprint, tokenizer, settings, kind)
    cache = Path(cache_dir).expanduser() if cache_dir else user_cache()
    folder, began = cache / key, time.time()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _remove_leftovers(cache)
        if _is_intact(folder) and not (fresh and folder.stat().st_mtime < began):
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
    """Tokenise rows lazily, in this process and without a cache; dropped rows are logged.

    Args:
        rows: Rows of one kind, possibly without end. Texts are packed into blocks.
        tokenizer: The tokenizer that encodes the rows.
        settings: How rows become tokens.
        kind: Kind of row.

    Raises:
        InputError: A row cannot be tokenised.
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
        source_fingerprint: Hash of the source's content.
        tokenizer: The hash includes its vocabulary, normalisation, special tokens, and the text of the chosen template.
        settings: The hash includes all settings, and also the code of the data package.
        kind: Kind of row.
    """
    template = choose_template(tokenizer, settings.chat_template)
    parts = {
        "source": source_fingerprint,
        "tokenizer": tokenizer_text(tokenizer),
        "template": [template.text, template.tool_text],
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
    ours = [Path(types.__file__).with_name(name) for name in ("rows.py", "layout.py")]
    files = sorted([*Path(data.__file__).parent.rglob("*.py"), *ours])
    return "".join(file.read_text(encoding="utf-8") for file in files)


def user_cache() -> Path:
    """Default folder of token tables."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignlab" / "tokens"


def _packed(rows: Iterator[TokenRow], settings: TokenSettings, kind: type[Row]) -> Iterator[TokenRow]:
    if kind is not Text:
        return rows
    return pack(rows, settings.max_tokens_per_sequence, settings.cross_document_attention)


class _CountedRows:
    """Yields the kept rows while it counts all rows and collects errors."""

    def __init__(self, outcomes: Iterable[tuple[TokenRow | Dropped | InputError, Counts]]):
        self.outcomes, self.counts, self.num_details = outcomes, Counts(), 0

    def __iter__(self) -> Iterator[TokenRow]:
        errors: list[InputError] = []
        too_long: list[TooLong] = []
        num_rows = 0
        for outcome, counts in self.outcomes:
            num_rows += 1
            self.counts += counts
            if isinstance(outcome, TooLong):
                too_long.append(outcome)
            elif isinstance(outcome, InputError):
                errors.append(outcome)
                if len(errors) == _MAX_ERRORS:  # each one searches for remedies, which takes long
                    break
            elif isinstance(outcome, TokenRow):
                yield outcome
            elif outcome.detail and self.num_details < _MAX_DETAILS:
                self.num_details += 1
                _log.warning("dropped %s", outcome.detail)
        raise_all([*([sum_up(too_long, num_rows)] if too_long else []), *errors])


def _store(
    folder: Path,
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    settings: TokenSettings,
    kind: type[Row],
    workers: int | None,
) -> None:
    """Tokenise into a temporary folder and rename it when complete; the caller holds the lock."""
    building = folder.with_name(f"{_BUILDING}{folder.name}")
    _remove(building)  # left by a killed process, since this process holds the lock
    try:
        with _progress() as progress:
            task = progress.add_task("tokenising", total=None)
            counted = _CountedRows(tokenize_rows(progress.track(rows, task_id=task), tokenizer, settings, workers))
            write_table(building, _packed(iter(counted), settings, kind), lambda: counted.counts)
        write_manifest(building)
        # The folder of a key is always a table, perhaps a damaged one; a process that has it open keeps its memory map.
        _remove(folder)
        os.replace(building, folder)
    finally:
        _remove(building)


def _is_intact(folder: Path) -> bool:
    """Whether a table exists and is undamaged; damage is logged."""
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
    """Hold the lock under which one process at a time looks for a table or builds it."""
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
    """Remove incomplete tables of killed processes: those whose lock no process holds."""
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
