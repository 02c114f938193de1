"""Interpolations of a config: resolved once, by a few known resolvers, and never again.

What comes out is plain data. A string of it that looks like an interpolation is a string, here and when it was written
to a file and read back. References to secrets are the one exception: they stay, see ``credentials``.
"""

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError

from alignlab.errors import InputError
from alignlab.system.credentials import REFERENCE, holds_secret, is_secret, reference

RESOLVERS = ("hydra", "now", "oc.env", "oc.select", "python_version")
"""Resolvers that a config may use. The others of OmegaConf make nodes out of text, or resolve text a second time."""

OTHERS = ("oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values")

NO_RUN_DIR = "<run_dir>"
"""Stands in a resolved config for the run's folder until that is decided."""

_NO_DEFAULT = object()


def limit_resolvers() -> None:
    """Leave only the known resolvers, with one of ours for environment variables; for the whole process."""
    for name in OTHERS:
        OmegaConf.clear_resolver(name)
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def _environment(name: str, default: Any = _NO_DEFAULT, *, _node_: Node) -> Any:
    """Value of a variable; of one that holds a secret the reference to it."""
    if name not in os.environ:
        if default is _NO_DEFAULT:
            raise KeyError(f"there is no environment variable {name}")
        return default if default is None else str(default)
    secret = is_secret(name) or is_secret(str(_node_._get_full_key(None))) or holds_secret(os.environ[name])
    return reference(name) if secret else os.environ[name]


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain containers.

    Args:
        cfg: Composed; left as it is.

    Raises:
        InputError: A reference leads nowhere, a resolver is not known, or ``${…}`` cannot be read.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except InterpolationResolutionError as error:
        why = str(error.__cause__ or error.msg).splitlines()[0].strip("'\"")
        instead = f"Correct its ${{…}}; besides keys it may name {', '.join(f'{name}:…' for name in RESOLVERS)}"
        raise InputError(str(error.full_key), why, instead) from error
    except GrammarParseError as error:
        raise InputError(str(error.full_key), str(error).splitlines()[0], "Correct its ${…}") from error


def with_run_dir(tree: Any, run_dir: str) -> Any:
    """A resolved config once the run's folder is decided."""
    if isinstance(tree, Mapping):
        return {key: with_run_dir(value, run_dir) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_run_dir(value, run_dir) for value in tree]
    return tree.replace(NO_RUN_DIR, run_dir) if isinstance(tree, str) else tree


def escaped(tree: Any) -> Any:
    """Plain data such that reading it as a config gives it back: what looks like an interpolation is quoted."""
    if isinstance(tree, Mapping):
        return {key: escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [escaped(value) for value in tree]
    return _escaped(tree) if isinstance(tree, str) else tree


def _escaped(text: str) -> str:
    """A text quoted, but for its references."""
    kept = {match.start() for match in REFERENCE.finditer(text)}
    pieces, slashes = [], 0
    for index, letter in enumerate(text):
        if text.startswith("${", index):
            pieces.append("\\" * (slashes + (index not in kept)))
        pieces.append(letter)
        slashes = slashes + 1 if letter == "\\" else 0
    return "".join(pieces)


def as_yaml(config: Mapping[str, Any]) -> str:
    """A resolved config as a file that composes to the same one."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(config)))
