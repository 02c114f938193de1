"""How alignlab says no: what was asked, why not, what to type instead."""

import difflib
from collections.abc import Iterable, Sequence


class _Told(Exception):
    """An error that is told in one paragraph: what was asked, why not, what to do instead."""

    def __init__(self, asked: str, why: str, instead: str):
        self.asked, self.why, self.instead = asked, why, instead
        super().__init__(f"{asked}: {_sentence(why)} {_sentence(instead)}")

    def __reduce__(self):
        return type(self), (self.asked, self.why, self.instead)


class InputError(_Told):
    """The user's input cannot be honoured (exit code 2, printed as one paragraph without a traceback).

    Args:
        asked: What was asked, with the values, e.g. ``data.truncation=cut``.
        why: Why it cannot be done; names the file, the line and the field where the fault lies in data.
        instead: What to type instead, as the user would type it.
    """


class RunError(_Told):
    """A run that began cannot go on: its rewards, its disk, a server (exit code 1, one paragraph, no traceback).

    Args:
        asked: What the run was doing, with the values, e.g. ``method.reward.http``.
        why: What keeps it from going on.
        instead: What to change before it is started again.
    """


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


class InputErrors(InputError):
    """Several faults reported together."""

    def __init__(self, errors: Sequence[InputError]):
        self.errors = tuple(errors)
        Exception.__init__(self, "\n".join(f"- {error}" for error in self.errors))

    def __reduce__(self):
        return InputErrors, (self.errors,)


def raise_all(errors: Sequence[InputError]) -> None:
    """Raise nothing, the one error, or all errors together."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputErrors(errors)


def nearest(name: str, options: Iterable[str]) -> str:
    """``did you mean 'x'?`` where one of the options resembles the name, else the options.

    Args:
        name: What the user typed.
        options: The real names.
    """
    options = sorted(map(str, options))
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"The names are: {', '.join(options) or 'none'}."
