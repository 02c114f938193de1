"""Replies of judges on disk, so that no question is asked twice.

They are kept as text in one SQLite file of the standard library: it survives killed processes, several processes may
use it at the same time, and reading it runs no code, unlike pickles of a cache library.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from alignlab.errors import InputError
from alignlab.system.paths import reason, typed_path

FILE = "replies.sqlite"
SECONDS_TO_WAIT = 30
"""Time to wait for another process that writes."""


class ReplyCache:
    """Replies by the hash of their question.

    Args:
        folder: Folder of the file, made if it is missing.
        name: Dotted key of the folder, for errors.

    Raises:
        InputError: The folder or its file cannot be used.
    """

    def __init__(self, folder: str, name: str):
        self.path = typed_path(folder, name) / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as file:
                file.execute("CREATE TABLE IF NOT EXISTS replies (question TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{name}={folder}", reason(error), "Name another folder, or null") from error

    def get(self, question: str) -> str | None:
        """The reply to a question, or None."""
        with self._open() as file:
            row = file.execute("SELECT reply FROM replies WHERE question = ?", (question,)).fetchone()
        return row and row[0]

    def put(self, question: str, reply: str) -> None:
        """Keep the reply to a question."""
        with self._open() as file:
            file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (question, reply))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)) as connection, connection:
            yield connection
