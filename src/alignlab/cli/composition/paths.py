"""Paths on a command line, typed as words without a key."""

from collections.abc import Sequence


def paths_as_key(words: Sequence[str], key: str) -> list[str]:
    """Gather the words that are neither ``key=value`` nor a flag into one list: ``A B to=C`` is ``from=[A,B] to=C``.

    Args:
        words: Command line after the verb.
        key: Key of the list.
    """
    paths = [word for word in words if "=" not in word and not word.startswith("-")]
    others = [word for word in words if word not in paths]
    return [*others, f"{key}=[{','.join(map(_quoted, paths))}]"] if paths else others


def _quoted(path: str) -> str:
    """A path as Hydra's grammar takes any text; it unescapes backslashes only before a quote and at the end."""
    escaped = path.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"
