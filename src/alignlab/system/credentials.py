"""Passwords, keys and tokens: kept in environment variables, and referenced by name in written configs.

A config holds ``${oc.env:NAME}`` instead of a secret, and the value is inserted when an object is built from it. A
secret that was typed in plain text is first moved into a variable of this process and its children
(``ALIGNLAB_SECRET_…``).
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
"""Words in a name that mark a secret; whole words: in ``hf_token`` but not in ``tokenizer`` or ``max_tokens``."""

HARMLESS = re.compile(r"(^|[._])((pad|eos|bos|unk|sep|cls|mask|image)_token|token_level|api_key_env|columns\..*)$")
"""Names that contain such a word but are not secrets."""

PREFIX = "ALIGNLAB_SECRET_"
MASK = "***"
REFERENCE = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)\}")
SHAPES = re.compile(
    r"(?<=://)[^/@\s]+(?=@)"  # user and password of a URL
    r"|(?<=Bearer )\S+|(?<=Basic )\S+"
    r"|\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b"
)
"""Texts that are secrets under any name."""
QUERY = re.compile(r"(?<=[?&])([\w.-]+)=([^&#\s]+)")
FLAG = re.compile(r"--([\w-]+)(?:=(.+))?", re.DOTALL)
SHORTEST = 4
"""Secrets with fewer characters are not masked in texts, since they occur in ordinary words."""

_known: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether the name of a variable, or a dotted config key, is that of a secret."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return bool(WORDS.intersection(re.split(r"[^a-z0-9]+", words))) and not HARMLESS.search(name)


def holds_secret(text: str) -> bool:
    """Whether a value looks like a secret or contains one, under any name."""
    named = any(is_secret(name) for name, _ in QUERY.findall(text))
    return named or SHAPES.search(text) is not None


def reference(name: str) -> str:
    """The config's reference to a variable that holds a secret."""
    _known.add(name)
    return f"${{oc.env:{name}}}"


def hide(path: str, text: str) -> str:
    """Move the secrets of a value into environment variables, and replace them with references.

    Args:
        path: Dotted key, from which the variable's name is made.
        text: The value as typed; references and other interpolations are left unchanged.
    """
    name = PREFIX + re.sub(r"[^A-Z0-9]+", "_", path.upper())
    if "_target_" in path or text in ("", "???", "null"):
        return text
    if is_secret(path) and "${" not in text:
        return _moved(name, text)
    text = SHAPES.sub(lambda match: match[0] if "${" in match[0] else _moved(name, match[0]), text)
    return QUERY.sub(lambda match: _hidden_parameter(name, match), text)


def hide_all(path: str, config: Any) -> Any:
    """Replace the secrets of a plain, unresolved config with references, as ``hide`` does.

    Args:
        path: Dotted key of the config; empty for the root.
        config: A nesting of mappings, lists and values.
    """
    if isinstance(config, Mapping):
        return {key: hide_all(f"{path}.{key}" if path else str(key), value) for key, value in config.items()}
    if isinstance(config, list):
        return _hide_list(path, config)
    return hide(path, config) if isinstance(config, str) else config


def secret(name: str) -> str:
    """Value of a variable that holds a secret, which is masked from now on."""
    _known.add(name)
    return os.environ[name]


def revealed(path: str, text: str) -> str:
    """Replace the references in a value with the secrets.

    Args:
        path: Dotted key, for errors.
        text: Value in which everything but these references is resolved.

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
        why = "a typed secret is not saved, so it has to be given each time"
    return InputError(f"{path}=${{oc.env:{name}}}", why, f"Type export {name}=VALUE first, or {path}=VALUE")


def blanked(config: Any) -> Any:
    """Mask every reference to a secret in a config, so that runs compare equal however the secret is given."""
    if isinstance(config, Mapping):
        return {key: blanked(value) for key, value in config.items()}
    if isinstance(config, list):
        return [blanked(value) for value in config]
    return REFERENCE.sub(MASK, config) if isinstance(config, str) else config


def masked(text: str) -> str:
    """Mask every secret known to this process in a text that is printed or logged."""
    values = {os.environ.get(name, "") for name in _known}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK) if len(value) >= SHORTEST else text
    return text


def _moved(name: str, value: str) -> str:
    """Set a variable to the value and return its reference; add a number to its name if it holds another secret."""
    number, taken = 1, name
    while os.environ.get(taken, value) != value and taken in _known:
        number, taken = number + 1, f"{name}_{number + 1}"
    os.environ[taken] = value
    return reference(taken)


def _hidden_parameter(name: str, match: re.Match) -> str:
    """A parameter of a URL, hidden if its name is that of a secret."""
    if not is_secret(match[1]) or "${" in match[2]:
        return match[0]
    return f"{match[1]}={_moved(f'{name}_' + re.sub(r'[^A-Z0-9]+', '_', match[1].upper()), match[2])}"


def _hide_list(path: str, items: list[Any]) -> list[Any]:
    """Hide secrets in a list, including values of arguments: after ``--api-key`` in the next item, or after ``=``."""
    hidden, names_next = [], ""
    for index, item in enumerate(items):
        flag = FLAG.fullmatch(item) if isinstance(item, str) else None
        if flag is not None and flag[2] is not None and is_secret(flag[1]):
            hidden.append(f"--{flag[1]}={hide(f'{path}.{flag[1]}', flag[2])}")
        else:
            hidden.append(hide_all(f"{path}.{names_next or index}", item))
        names_next = flag[1] if flag is not None and flag[2] is None and is_secret(flag[1]) else ""
    return hidden
