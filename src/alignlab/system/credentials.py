"""Passwords, keys and tokens: kept in the environment, referred to by name wherever a config is written.

A config holds ``${oc.env:NAME}`` in the place of a secret; the value is filled in where an object is made of it. What
was typed as it is moves into a variable of this process and its children (``ALIGNLAB_SECRET_…``) before anything else
sees it.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from alignlab.errors import InputError

WORDS = {
    "apikey", "auth", "authorization", "credential", "credentials", "key", "passphrase", "passwd", "password", "pwd",
    "secret", "secrets", "token",
}  # fmt: skip
"""Words that make a name that of a secret, as a whole word: ``hf_token`` but not ``tokenizer`` or ``max_tokens``."""

HARMLESS = re.compile(r"(^|[._])((pad|eos|bos|unk|sep|cls|mask|image)_token|token_level|columns\..*)$")
"""Names that hold such a word and no secret."""

PREFIX = "ALIGNLAB_SECRET_"
MASK = "***"
REFERENCE = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)\}")
SHAPES = re.compile(
    r"(?<=://)[^/@\s]+(?=@)"  # user and password of a URL
    r"|(?<=Bearer )\S+|(?<=Basic )\S+"
    r"|\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b"
)
"""What is a secret wherever it stands."""
QUERY = re.compile(r"(?<=[?&])([\w.-]+)=([^&#\s]+)")
FLAG = re.compile(r"--([\w-]+)(?:=(.+))?", re.DOTALL)
SHORTEST = 4
"""Characters of a secret that is looked for in texts; shorter ones are found in ordinary words."""

_known: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether a variable, or a dotted key of a config, is named as the holder of a secret."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return bool(WORDS.intersection(re.split(r"[^a-z0-9]+", words))) and not HARMLESS.search(name)


def holds_secret(text: str) -> bool:
    """Whether a value looks like a secret, or holds one, whatever its name."""
    named = any(is_secret(name) for name, _ in QUERY.findall(text))
    return named or SHAPES.search(text) is not None


def reference(name: str) -> str:
    """How a config refers to a variable that holds a secret."""
    _known.add(name)
    return f"${{oc.env:{name}}}"


def hide(path: str, text: str) -> str:
    """A value with its secrets moved into the environment and referred to instead.

    Args:
        path: Dotted key, which names the variable too.
        text: The value as typed; what is a reference or another interpolation already stays.
    """
    name = PREFIX + re.sub(r"[^A-Z0-9]+", "_", path.upper())
    if "_target_" in path or text in ("", "???", "null"):
        return text
    if is_secret(path) and "${" not in text:
        return _moved(name, text)
    text = SHAPES.sub(lambda match: match[0] if "${" in match[0] else _moved(name, match[0]), text)
    return QUERY.sub(lambda match: _hidden_parameter(name, match), text)


def hide_all(path: str, tree: Any) -> Any:
    """A plain, unresolved config with its secrets moved into the environment.

    Args:
        path: Dotted key of the tree.
        tree: Containers and leaves.
    """
    if isinstance(tree, Mapping):
        return {key: hide_all(f"{path}.{key}" if path else str(key), value) for key, value in tree.items()}
    if isinstance(tree, list):
        return _hide_list(path, tree)
    return hide(path, tree) if isinstance(tree, str) else tree


def revealed(path: str, text: str) -> str:
    """A value with its references filled in.

    Args:
        path: Dotted key, for errors.
        text: Resolved but for references.

    Raises:
        InputError: The variable is not set.
    """

    def value(match: re.Match) -> str:
        if match[1] not in os.environ:
            raise not_set(path, match[1])
        _known.add(match[1])
        return os.environ[match[1]]

    return REFERENCE.sub(value, text)


def not_set(path: str, name: str) -> InputError:
    """The error for a reference to a variable that is not set."""
    why = "there is no such environment variable"
    if name.startswith(PREFIX):
        why = "a secret that is typed is written nowhere, so it has to be given each time"
    return InputError(f"{path}=${{oc.env:{name}}}", why, f"Type export {name}=VALUE first, or {path}=VALUE")


def blanked(tree: Any) -> Any:
    """A config with every reference to a secret blanked: the same run, however the secret is given."""
    if isinstance(tree, Mapping):
        return {key: blanked(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [blanked(value) for value in tree]
    return REFERENCE.sub(MASK, tree) if isinstance(tree, str) else tree


def masked(text: str) -> str:
    """A text for people and logs, with every secret that this process knows blanked."""
    values = {os.environ.get(name, "") for name in _known}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK) if len(value) >= SHORTEST else text
    return text


def _moved(name: str, value: str) -> str:
    """The reference to a variable that now holds the value; another name where that one holds another value."""
    number, taken = 1, name
    while os.environ.get(taken, value) != value and taken in _known:
        number, taken = number + 1, f"{name}_{number + 1}"
    os.environ[taken] = value
    return reference(taken)


def _hidden_parameter(name: str, match: re.Match) -> str:
    """A parameter of a URL, hidden where its name is that of a secret."""
    if not is_secret(match[1]) or "${" in match[2]:
        return match[0]
    return f"{match[1]}={_moved(f'{name}_' + re.sub(r'[^A-Z0-9]+', '_', match[1].upper()), match[2])}"


def _hide_list(path: str, items: list[Any]) -> list[Any]:
    """A list, which may be one of arguments: what follows ``--api-key``, in the next item or after ``=``, is hidden."""
    hidden, names_next = [], ""
    for index, item in enumerate(items):
        flag = FLAG.fullmatch(item) if isinstance(item, str) else None
        if flag is not None and flag[2] is not None and is_secret(flag[1]):
            hidden.append(f"--{flag[1]}={hide(f'{path}.{flag[1]}', flag[2])}")
        else:
            hidden.append(hide_all(f"{path}.{names_next or index}", item))
        names_next = flag[1] if flag is not None and flag[2] is None and is_secret(flag[1]) else ""
    return hidden
