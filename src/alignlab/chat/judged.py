"""A dialogue in which one or more models answer each question, and the best of several answers is chosen."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from alignlab.chat.settings import SpeakerSettings
from alignlab.chat.speaker import Speaker
from alignlab.chat.votes import Candidate, append_row, row_of_vote
from alignlab.types.rows import Message


@dataclass
class Judged:
    """The state of one dialogue.

    Args:
        dialogue: The messages so far; the last is a question while answers are sampled or wait for a vote.
        candidates: The answers to it.
        settings: How they were sampled.
        wins: Number of votes for each model, by its name.
        stopped: Set to end the sampling.
    """

    dialogue: list[Message] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    settings: SpeakerSettings | None = None
    wins: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    def begin(self) -> None:
        """Begin anew."""
        self.dialogue, self.candidates = [], []

    def ask(
        self, question: str, speakers: Mapping[str, Speaker], settings: SpeakerSettings, num_answers: int
    ) -> Iterator[None]:
        """Sample answers to a question. A single answer is taken; of several one has to be chosen.

        Args:
            question: What the user says.
            speakers: The models by name.
            settings: How they sample.
            num_answers: Number of answers of each model.

        Yields:
            After each piece of an answer.

        Raises:
            InputError: A model refuses the dialogue; the question is taken back.
        """
        self.settings, self.stopped = settings, False
        self.dialogue.append({"role": "user", "content": question})
        self.candidates = [Candidate(name) for name in speakers for _ in range(num_answers)]
        events: SimpleQueue[bool | Exception] = SimpleQueue()  # True for a piece
        threading.Thread(target=self._sample, args=(speakers, events.put), daemon=True).start()
        try:
            while (event := events.get()) is True:
                yield
        finally:
            self.stopped = True  # the page may have been closed
        if isinstance(event, Exception):
            self.take_back()
            raise event
        if len(self.candidates) == 1:
            self._go_on_with(0)

    def _sample(self, speakers: Mapping[str, Speaker], report: Callable[[bool | Exception], None]) -> None:
        """Sample all answers, one after the other, so that a seed gives the same ones again."""

        def show(piece: str) -> None:
            candidate.text += piece
            report(True)

        try:
            for candidate in self.candidates:
                answer = speakers[candidate.model].answer(self.dialogue, self.settings, show, lambda: self.stopped)
                candidate.finished = answer.finished
        except Exception as error:
            report(error)
        else:
            report(False)

    def vote(self, chosen: int, file: Path) -> None:
        """Write a row of the best answer and the others, and go on with the best.

        Args:
            chosen: Index of the best answer.
            file: File of the rows.

        Raises:
            InputError: There is nothing to learn from this vote.
            OSError: The row cannot be written.
        """
        append_row(file, row_of_vote(self.dialogue, self.candidates, chosen, self.settings))
        self.wins[self.candidates[chosen].model] += 1
        self._go_on_with(chosen)

    def tie(self) -> None:
        """Go on with the first answer, without a vote."""
        self._go_on_with(0)

    def _go_on_with(self, index: int) -> None:
        self.dialogue.append({"role": "assistant", "content": self.candidates[index].text})
        self.candidates = []

    def take_back(self) -> str:
        """Take back the last question, with its answers if there are any.

        Returns:
            The question; empty if there is none.
        """
        self.candidates = []
        while self.dialogue and self.dialogue[-1]["role"] == "assistant":
            self.dialogue.pop()
        asked = bool(self.dialogue) and self.dialogue[-1]["role"] == "user"
        return str(self.dialogue.pop()["content"]) if asked else ""
