"""Errors for users: what was asked, why it cannot be done, what to type instead."""

import difflib
from collections.abc import Iterable, Sequence


class _ExplainedError(Exception):
    """An error in one paragraph: what was asked, why it cannot be done, what to do instead."""

    def __init__(self, asked: str, why: str, instead: str):
        self.asked, self.why, self.instead = asked, why, instead
        super().__init__(f"{asked}: {_sentence(why)} {_sentence(instead)}")

    def __reduce__(self):
        return type(self), (self.asked, self.why, self.instead)


class InputError(_ExplainedError):
    """The user's input is invalid (exit code 2, printed as one paragraph without a traceback).

    Args:
        asked: What was asked, with the values, e.g. ``data.truncation=cut``.
        why: Why it cannot be done; for invalid data it names the file, the line and the field.
        instead: What to type instead, as the user would type it.
    """


class RunError(_ExplainedError):
    """A run cannot continue because of its rewards, disk or a server (exit code 1, one paragraph, no traceback).

    Args:
        asked: What the run was doing, with the values, e.g. ``method.reward.http``.
        why: Why it cannot continue.
        instead: What to change before the run is started again.
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
    """Raise all errors together; do nothing if there are none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputErrors(errors)


def nearest(name: str, options: Iterable[str]) -> str:
    """``Did you mean 'x'?`` if one of the options resembles the name, else a list of the options.

    Args:
        name: What the user typed.
        options: The valid names.
    """
    options = sorted(map(str, options))
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"The names are: {', '.join(options) or 'none'}."
