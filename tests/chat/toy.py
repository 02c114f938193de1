"""Speakers that say what is given, without a model."""

import json
import time
from pathlib import Path

from alignlab.chat.speaker import Answer, SpeakerSettings

SAMPLING = SpeakerSettings(temperature=0.7, top_p=1.0, top_k=0, max_tokens=64)


class Reciter:
    """Says one text after the other, word by word; a text that is an error is raised.

    Args:
        *texts: What it says.
        seconds_per_word: How long each word takes.
        notes: File that gets each dialogue that it answers, one per line.
    """

    def __init__(self, *texts, seconds_per_word=0.0, notes=Path("/dev/null")):
        self.texts, self.seconds_per_word, self.notes = list(texts), seconds_per_word, notes

    def answer(self, messages, settings, show, stopped=lambda: False):
        with self.notes.open("a") as notes:
            notes.write(json.dumps(messages) + "\n")
        text = self.texts.pop(0)
        if isinstance(text, Exception):
            raise text
        said = ""
        for word in text.replace(" ", "  ").split(" "):
            if stopped():
                return Answer(said, False)
            show(piece := word or " ")
            said += piece
            time.sleep(self.seconds_per_word)
        return Answer(said, True)
