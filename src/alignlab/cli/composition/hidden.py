"""Replace secrets on the command line and in config files by references, before Hydra writes or shows anything."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from alignlab.cli.composition.refusals import parse
from alignlab.system.credentials import hide, hide_all


def hide_words(words: Sequence[str]) -> list[str]:
    """Replace secrets in overrides by references; a note on standard error names the keys.

    Args:
        words: Overrides as typed.
    """
    hidden = [_hidden(word) for word in words]
    keys = [_key(word) for word, safe in zip(words, hidden, strict=True) if word != safe]
    if keys:
        print(
            f"secret: {', '.join(keys)} is written nowhere, so resume and --from need it again; others on this machine"
            f" can read a command line, so better type {keys[0]}='${{oc.env:NAME}}'",
            file=sys.stderr,
        )
    return hidden


def hide_config(cfg: DictConfig) -> None:
    """Replace secrets in a composed config by references, in place.

    Args:
        cfg: Unresolved config, which may contain Hydra's own settings.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    hidden = {key: hide_all(str(key), value) for key, value in plain.items() if key != "hydra"}
    with read_write(cfg), open_dict(cfg):
        for key, value in hidden.items():
            if value != plain[key]:
                cfg[key] = value


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _hidden(word: str) -> str:
    name, equals, text = word.partition("=")
    override = parse(word)
    if not equals or (override is not None and override.is_delete()):
        return word
    if override is None:
        return f"{name}={hide(_key(word), text)}"
    if override.is_sweep_override():
        return _hidden_sweep(word, override)
    value = override.value()
    safe = hide_all(_key(word), value)
    return word if safe == value else f"{name}={_typed(safe)}"


def _hidden_sweep(word: str, override: Any) -> str:
    """Hide each value of a list; ranges that a sweeper draws from hold no secrets."""
    if not override.is_discrete_sweep():
        return word
    choices = [c.text if isinstance(c, QuotedString) else c for c in override.sweep_iterator()]
    safe = [hide_all(_key(word), choice) for choice in choices]
    return word if safe == choices else f"{word.partition('=')[0]}={','.join(map(_typed, safe))}"


def _typed(value: Any) -> str:
    """Format a value in Hydra's override grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_typed, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
