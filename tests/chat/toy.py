"""Speakers that say what is given, without a model."""

import json
import re
import time
from pathlib import Path

from alignlab.chat.settings import SpeakerSettings
from alignlab.chat.speaker import Answer

SAMPLING = SpeakerSettings(temperature=0.7, top_p=1.0, top_k=0, max_tokens=64)


class Reciter:
    """Says one text after the other, word by word; a text that is an error is raised.

    Args:
        *texts: What it says.
        gate: File without which it does not say the last word of a text; None for no waiting.
        notes: File that gets each dialogue that it answers, one per line.
    """

    def __init__(self, *texts, gate=None, notes=Path("/dev/null")):
        self.texts, self.gate, self.notes = list(texts), gate, notes

    def answer(self, messages, settings, show, stopped=lambda: False):
        with self.notes.open("a") as notes:
            notes.write(json.dumps(messages) + "\n")
        text = self.texts.pop(0)
        if isinstance(text, Exception):
            raise text
        *pieces, last = re.findall(r"\s*\S+|\s+$", text)
        for piece in pieces:
            show(piece)
        while self.gate and not self.gate.exists() and not stopped():
            time.sleep(0.01)
        if stopped():
            return Answer("".join(pieces), False)
        show(last)
        return Answer(text, True)
