"""Resolve the interpolations of a config, once, with a few allowed resolvers.

The result is plain data. A string in it that looks like an interpolation remains a string, also after it is written to
a file and read back. Only references to secrets are kept; see ``credentials``.
"""

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError

from alignlab.errors import InputError
from alignlab.system.credentials import REFERENCE, holds_secret, is_secret, reference

RESOLVERS = ("hydra", "now", "oc.env", "oc.select", "python_version")
"""Resolvers that a config may use. OmegaConf's others turn text into nodes, or resolve text a second time."""

OTHERS = ("oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values")

NO_RUN_DIR = "<run_dir>"
"""Placeholder of the run's folder in a resolved config, until the folder is known."""

_NO_DEFAULT = object()


def limit_resolvers() -> None:
    """Remove all other resolvers, and replace the one for environment variables; for the whole process."""
    for name in OTHERS:
        OmegaConf.clear_resolver(name)
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _environment(name: str, default: Any = _NO_DEFAULT, *, _node_: Node) -> Any:
    """Value of an environment variable, or a reference to it if it is a secret."""
    if name not in os.environ:
        if default is _NO_DEFAULT:
            raise KeyError(f"there is no environment variable {name}")
        return default if default is None else str(default)
    secret = is_secret(name) or is_secret(str(_node_._get_full_key(None))) or holds_secret(os.environ[name])
    return reference(name) if secret else os.environ[name]


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Resolve a config to plain containers.

    Args:
        cfg: Composed config, which is not changed.

    Raises:
        InputError: A referenced key does not exist, a resolver is not allowed, or ``${…}`` cannot be parsed.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except InterpolationResolutionError as error:
        why = str(error.__cause__ or error.msg).splitlines()[0].strip("'\"")
        instead = f"Correct its ${{…}}; besides keys it may use {', '.join(f'{name}:…' for name in RESOLVERS)}"
        raise InputError(str(error.full_key), why, instead) from error
    except GrammarParseError as error:
        raise InputError(str(error.full_key), str(error).splitlines()[0], "Correct its ${…}") from error


def with_run_dir(tree: Any, run_dir: str) -> Any:
    """Replace the placeholder of the run's folder in a resolved config."""
    if isinstance(tree, Mapping):
        return {key: with_run_dir(value, run_dir) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_run_dir(value, run_dir) for value in tree]
    return tree.replace(NO_RUN_DIR, run_dir) if isinstance(tree, str) else tree


def escaped(tree: Any) -> Any:
    """Escape strings that look like interpolations, so that reading the result as a config gives the same data."""
    if isinstance(tree, Mapping):
        return {key: escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [escaped(value) for value in tree]
    return _escaped(tree) if isinstance(tree, str) else tree


def _escaped(text: str) -> str:
    """Escape a text, except its references to secrets."""
    kept = {match.start() for match in REFERENCE.finditer(text)}
    pieces, slashes = [], 0
    for index, letter in enumerate(text):
        if text.startswith("${", index):
            pieces.append("\\" * (slashes + (index not in kept)))
        pieces.append(letter)
        slashes = slashes + 1 if letter == "\\" else 0
    return "".join(pieces)


def as_yaml(config: Mapping[str, Any]) -> str:
    """A resolved config as YAML that composes to the same config."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(config)))
