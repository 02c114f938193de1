"""Tokenise many rows, in this process or in several."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from alignlab.data.settings import TokenSettings
from alignlab.data.table.counts import Counts, Dropped
from alignlab.data.tokenise.rows import tokenize_counted
from alignlab.data.tokenise.templates import TemplateLimit
from alignlab.errors import InputError
from alignlab.system.processes import be_worker
from alignlab.types.rows import Row, TokenRow

Outcome = tuple[TokenRow | Dropped | InputError, Counts]

_SMALL = 4000
"""Number of rows below which starting processes costs more than it saves."""
_ROWS_PER_TASK = 256
_MAX_WORKERS = 16

_worker_arguments: tuple[PreTrainedTokenizerBase, TokenSettings]


def tokenize_rows(
    rows: Iterable[Row], tokenizer: PreTrainedTokenizerBase, settings: TokenSettings, workers: int | None
) -> Iterator[Outcome]:
    """Yield the outcome of each row, in order. The error of a row that cannot be tokenised is yielded, not raised.

    Args:
        rows: Rows to tokenise, read a few tasks ahead.
        tokenizer: The tokenizer that encodes the rows.
        settings: How rows become tokens.
        workers: Number of processes; 0 for this one, None for this one if there are few rows, otherwise one per core.
    """
    rows = iter(rows)
    if workers is None:
        head = list(islice(rows, _SMALL))
        rows = chain(head, rows)
        workers = min(len(os.sched_getaffinity(0)), _MAX_WORKERS) if len(head) == _SMALL else 0
    if workers <= 1:
        return (_outcome(row, tokenizer, settings) for row in rows)
    return _tokenize_in_processes(rows, tokenizer, settings, workers)


def _tokenize_in_processes(
    rows: Iterator[Row], tokenizer: PreTrainedTokenizerBase, settings: TokenSettings, workers: int
) -> Iterator[Outcome]:
    # Forked, so that a worker neither imports torch again nor unpickles the tokenizer.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(tokenizer, settings)) as pool:
        pending = deque()
        try:
            while task := list(islice(rows, _ROWS_PER_TASK)):
                pending.append(pool.submit(_run, task))
                if len(pending) > 2 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(tokenizer: PreTrainedTokenizerBase, settings: TokenSettings) -> None:
    global _worker_arguments
    be_worker()
    _worker_arguments = tokenizer, settings


def _run(rows: Iterable[Row]) -> list[Outcome]:
    return [_outcome(row, *_worker_arguments) for row in rows]


def _outcome(row: Row, tokenizer: PreTrainedTokenizerBase, settings: TokenSettings) -> Outcome:
    try:
        return tokenize_counted(row, tokenizer, settings)
    except TemplateLimit:  # every other row would take as long
        raise
    except InputError as error:
        return error, Counts()
