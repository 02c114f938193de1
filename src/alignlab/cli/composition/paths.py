"""Paths on a command line, typed as words without a key."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from alignlab.errors import InputError, InputErrors


def paths_as_key(words: Sequence[str], key: str) -> list[str]:
    """Gather the words that are neither ``key=value`` nor a flag into one list: ``A B to=C`` is ``from=[A,B] to=C``.

    Args:
        words: Command line after the verb.
        key: Key of the list.
    """
    paths = [word for word in words if "=" not in word and not word.startswith("-")]
    others = [word for word in words if word not in paths]
    return [*others, f"{key}=[{','.join(map(_quoted, paths))}]"] if paths else others


def path_as_key(words: Sequence[str], key: str) -> list[str]:
    """Take the one word that is neither ``key=value`` nor a flag as a key's value: ``A to=C`` is ``from=A to=C``.

    Args:
        words: Command line after the verb.
        key: Name of the key.

    Raises:
        InputError: There are several.
    """
    paths = [word for word in words if "=" not in word and not word.startswith("-")]
    if len(paths) > 1:
        raise InputError(" ".join(paths), f"{key} is one path", f"Type {key}={paths[0]}")
    others = [word for word in words if word not in paths]
    return [*others, f"{key}={_quoted(paths[0])}"] if paths else others


@contextmanager
def model_from_words(key: str = "from") -> Iterator[None]:
    """Let refusals of a model's path name the key that verbs other than train have for it.

    Args:
        key: Name of the key.

    Raises:
        InputError: In place of one that names ``model.path`` and ``model=pocket``.
    """
    try:
        yield
    except InputErrors:  # of values in its files
        raise
    except InputError as error:
        asked, instead = error.asked.replace("model.path=", f"{key}="), error.instead.replace("model=pocket", "pocket")
        raise InputError(asked, error.why, instead) from error


def _quoted(path: str) -> str:
    """A path as Hydra's grammar takes any text; it unescapes backslashes only before a quote and at the end."""
    escaped = path.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"
