"""A dialogue on the terminal."""

import contextlib
import sys
from collections.abc import Iterable

from alignlab.chat.settings import SpeakerSettings
from alignlab.chat.speaker import Speaker
from alignlab.errors import InputError
from alignlab.types.rows import Message

HELP = """\
/new            begin anew
/undo           take back the last question and its answer
/system TEXT    set the system message, and begin anew
/help           show this
/quit, Ctrl-D   leave; Ctrl-C ends an answer"""


def talk(speaker: Speaker, settings: SpeakerSettings, system: str | None, lines: Iterable[str]) -> list[Message]:
    """Answer line by line until the lines end or ``/quit``.

    Args:
        speaker: The model.
        settings: How answers are sampled.
        system: Text of the system message; ``None`` for none.
        lines: What the user types.

    Returns:
        The messages of the last dialogue.
    """
    dialogue = _begin(system)
    for line in map(str.strip, lines):
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        if command == "/system":
            system = rest or None
        if command in ("/new", "/system"):
            dialogue = _begin(system)
        elif command == "/undo":
            dialogue = dialogue[:-2] if dialogue[-1:] and dialogue[-1]["role"] == "assistant" else dialogue
        elif command.startswith("/"):
            print(HELP)
        elif line:
            dialogue = _answered(speaker, settings, [*dialogue, {"role": "user", "content": line}])
    return dialogue


def _begin(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def _answered(speaker: Speaker, settings: SpeakerSettings, dialogue: list[Message]) -> list[Message]:
    """The dialogue with an answer; without the question if it was refused."""
    try:
        answer = speaker.answer(dialogue, settings, _print)
    except InputError as error:
        print(error, file=sys.stderr)
        return dialogue[:-1]
    print(flush=True)
    return [*dialogue, {"role": "assistant", "content": answer.text}]


def _print(piece: str) -> None:
    print(piece, end="", flush=True)


def typed_lines(prompt: str) -> Iterable[str]:
    """Lines that the user types, until the end of the input; Ctrl-C at the prompt only begins a new line.

    Args:
        prompt: What stands before each line.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history for input)
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
