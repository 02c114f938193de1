"""Votes: one of several answers to a dialogue is chosen. A row of a JSONL file, which methods for comparisons read."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignlab.chat.settings import SpeakerSettings
from alignlab.data.formats import to_row
from alignlab.data.sources.files.record import Record
from alignlab.data.unread import VOTE
from alignlab.errors import InputError
from alignlab.system.paths import typed_path
from alignlab.types.rows import Message


@dataclass
class Candidate:
    """An answer that may be chosen.

    Args:
        model: Name of the model that gives it.
        text: Its text so far.
        finished: Whether the model has ended it.
    """

    model: str
    text: str = ""
    finished: bool = False


def row_of_vote(
    dialogue: Sequence[Message], candidates: Sequence[Candidate], chosen: int, settings: SpeakerSettings
) -> dict[str, Any]:
    """A row of the format ``preference``: a pair, or a group if there are several other answers.

    Answers that are empty or equal to the chosen one say nothing and are left out.

    Args:
        dialogue: The messages before the answers.
        candidates: All answers.
        chosen: Index of the best one.
        settings: How they were sampled.

    Raises:
        InputError: Training would learn from it what nobody meant: the end of an answer that was cut off, or nothing.
    """
    best, asked = candidates[chosen], "this vote"
    if not best.text.strip():
        raise InputError(asked, "the answer is empty", "Choose another answer, or press None is good")
    if not best.finished:
        why = "the answer was cut off, and its end would be learned"
        raise InputError(asked, why, "Raise max_tokens and ask again, or choose another answer")
    others = [one for one in candidates if one.text.strip() and one.text != best.text]
    if not others:
        raise InputError(asked, "there is no other answer to compare it with", "Press Tie")
    rejected = [[_message(one)] for one in others]
    about = {"chosen": best.model, "rejected": [one.model for one in others], "sampling": asdict(settings)}
    row = {
        "prompt": list(dialogue),
        "chosen": [_message(best)],
        "rejected": rejected if len(rejected) > 1 else rejected[0],
        VOTE: about | {"time": datetime.now(UTC).isoformat(timespec="seconds")},
    }
    try:
        to_row(Record(asked, row), "preference", {})
    except InputError as error:
        raise InputError(asked, f"training would refuse the row: {error.why}", "Begin a new dialogue") from error
    return row


def _message(candidate: Candidate) -> Message:
    return {"role": "assistant", "content": candidate.text}


def votes_file(path: str) -> Path:
    """The file of the votes, checked before there are any.

    Args:
        path: As typed.

    Raises:
        InputError: It cannot be written, or holds something else than one JSON object per line.
    """
    asked, file = f"votes={path}", typed_path(path, "votes")
    if file.suffix != ".jsonl":
        raise InputError(
            asked, "votes are lines of JSON, and the data reader knows files by their ending", _another(file)
        )
    if file.exists() and not file.is_file():
        raise InputError(asked, "it is not a file", _another(file))
    if not file.parent.is_dir():
        raise InputError(asked, f"there is no folder {file.parent}", "Make it, or name a file in another one")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise InputError(asked, "it cannot be written", "Name a file in a folder of yours")
    for number, line in enumerate(file.read_bytes().splitlines() if file.exists() else (), start=1):
        if line.strip() and not _is_object(line):
            raise InputError(asked, f"line {number} of it is not a JSON object", _another(file))
    return file


def _another(file: Path) -> str:
    return f"Name another file, such as votes={file.stem or 'votes'}_2.jsonl"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a JSONL file: all of it or nothing, also while others append.

    Args:
        file: The file; it is made if it does not exist.
        row: JSON values.

    Raises:
        OSError: The row cannot be written.
    """
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    with file.open("ab+", buffering=0) as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        size = opened.seek(0, os.SEEK_END)
        if size and os.pread(opened.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            if opened.write(line) < len(line):
                raise OSError(f"only a part of a row could be written to {file}")
            os.fsync(opened.fileno())
        except OSError:
            opened.truncate(size)
            raise
