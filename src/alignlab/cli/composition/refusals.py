"""Explain why a command line does not compose, with the names that exist."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import yaml
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from alignlab.config.schema.names import suggest
from alignlab.config.schema.other_tools import OTHER_TOOLS
from alignlab.errors import InputError, InputErrors, nearest

NO_CHOICE = "No match in the defaults list"
"""Text of Hydra's error for a group that exists but that the config does not choose from."""


class Vocabulary(Protocol):
    """The groups on the search path."""

    def groups(self, parent: str = "") -> list[str]:
        """Groups inside a group, or at the root."""
        ...

    def options(self, group: str) -> list[str]:
        """Options of a group."""
        ...

    def keys(self, words: Sequence[str]) -> set[str]:
        """Dotted keys of the config that some words compose."""
        ...


BESIDES = {
    "model": "For any other model: model.path=FOLDER_OR_HUB_ID",
    "data": "For a file: data=jsonl data.path=FILE",
    "method": "For a method of your own: method._target_=package.Class",
}
"""What to type if a group has no option of the name."""


LISTS = ("method/loss", "method/reward", "logger", "callbacks")
"""Groups from which several options may be chosen."""

NOTHING = ("false", "off", "no", "0", "''")
"""Words that users type where a group has the option ``none``."""

HYDRA = OmegaConf.structured(HydraConf)
"""Hydra's own settings."""


def let_keys_be_new(words: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Pass every ``key=value`` on to the schema, which knows more keys than the config files contain.

    Args:
        words: Overrides as typed.
        vocabulary: The groups on the search path.
    """
    return [f"++{word}" if _is_key(parse(word), vocabulary) else word for word in words]


def explain(error: Exception, words: Sequence[str], vocabulary: Vocabulary) -> InputError:
    """Explain an error of Hydra: name every wrong word, or else the wrong config file.

    Args:
        error: Error of Hydra, OmegaConf or the YAML reader.
        words: Overrides as typed.
        vocabulary: The groups on the search path.
    """
    faults = [fault for word in words for fault in _faults(word, words, vocabulary)]
    if not faults and str(error).startswith("Ambiguous value"):
        faults = [_several(word) for word in words if (found := parse(word)) is not None and found.is_sweep_override()]
    if faults:
        return faults[0] if len(faults) == 1 else InputErrors(faults)
    return _of_file(error, vocabulary)


def parse(word: str) -> Override | None:
    """Parse an override; None if the word is not one."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _is_key(override: Override | None, vocabulary: Vocabulary) -> bool:
    if override is None or override.type.name != "CHANGE" or override.is_hydra_override() or override.package:
        return False
    return isinstance(override.value(), dict) or not _is_group(override.key_or_group, vocabulary)


def _is_group(key: str, vocabulary: Vocabulary) -> bool:
    parent, _, name = key.rpartition("/")
    return name in vocabulary.groups(parent)


def _faults(word: str, words: Sequence[str], vocabulary: Vocabulary) -> Iterator[InputError]:
    override = parse(word)
    if "=" not in word and override is None:
        others = [one for one in words if parse(one) is not None]
        yield InputError(word, "it is neither group=option nor key=value", complete(word, others, vocabulary))
        return
    if override is None:
        yield InputError(word, "its value cannot be read", _quoted(word))
        return
    key = override.key_or_group
    if _is_group(key, vocabulary):
        unknown = [choice for choice in _choices(override) if choice not in vocabulary.options(key)]
        yield from (_no_option(key, choice, vocabulary) for choice in unknown)
    elif override.is_hydra_override() and not _is_hydra_key(key.split(".")[1:], HYDRA):
        yield InputError(word, "Hydra has no such setting", suggest(key, dotted_keys("hydra", HYDRA)))


def complete(word: str, others: Sequence[str], vocabulary: Vocabulary) -> str:
    """What to type instead of a word without a value: an option of a group, a group, a key, or neither.

    Args:
        word: The word, without ``=``.
        others: Other words, which can be read.
        vocabulary: The groups on the search path.
    """
    groups = _groups_with(word, vocabulary)
    if groups and word not in OTHER_TOOLS:
        return f"Type {' or '.join(f'{group}={word}' for group in groups)}"
    if _is_group(word, vocabulary):
        return f"Type {word}= with one of: {', '.join(vocabulary.options(word))}"
    known = vocabulary.keys(others)
    return f"Type {word}=VALUE" if word in known else suggest(word, known)


def instead_of_flag(flag: str, flags: Sequence[str], vocabulary: Vocabulary) -> str:
    """What to type instead of a flag that does not exist: here keys and groups have no dashes.

    Args:
        flag: The flag, with or without ``=`` and a value.
        flags: Flags that exist.
        vocabulary: The groups on the search path.
    """
    typed = flag.partition("=")[0]
    name = typed.lstrip("-").replace("-", "_")
    names = {key.rpartition(".")[2] for key in vocabulary.keys([])} | OTHER_TOOLS.keys()
    return complete(name, [], vocabulary) if name in names or _is_group(name, vocabulary) else nearest(typed, flags)


def _quoted(word: str) -> str:
    """How to type a value that Hydra cannot read: with quotes for Hydra, inside of quotes for the shell."""
    key, _, value = word.partition("=")
    if value.startswith(("[", "{")):
        return """Quote its texts, and the whole for the shell, as in 'key=["a b","c"]' or 'key={name: "a b"}'"""
    inside = f"{key}='" + value.replace("'", "\\'") + "'"
    for_shell = shlex.quote(inside) if set(inside) & set('"$`\\!') else f'"{inside}"'
    return f"Quote it for the shell and for Hydra: {for_shell}"


def _several(word: str) -> InputError:
    """Several values, where it is open whether all together or one after the other."""
    key, _, values = word.partition("=")
    together = f"Type '{key}=[{values}]' for all together, or" if key in LISTS else "Type"
    instead = f"{together} train --multirun {word} for one run each"
    return InputError(word, "it gives several values, and there is one run", instead)


def _is_hydra_key(parts: list[str], node: DictConfig) -> bool:
    """Whether Hydra has the setting; plugins bring settings of their own where Hydra leaves the type open."""
    if not parts or not OmegaConf.is_dict(node) or OmegaConf.get_type(node) is dict:
        return True
    return parts[0] in node and _is_hydra_key(parts[1:], node._get_node(parts[0]))


def dotted_keys(path: str, node: DictConfig) -> list[str]:
    """All keys below a node, sections included.

    Args:
        path: Dotted key of the node; empty for the root.
        node: A node that is a section.
    """
    children = [(f"{path}.{key}".lstrip("."), node._get_node(key)) for key in node]
    sections = [(key, child) for key, child in children if OmegaConf.is_dict(child) and not child._is_missing()]
    return [key for key, _ in children] + [key for section in sections for key in dotted_keys(*section)]


def _choices(override: Override) -> list[str]:
    if override.is_delete() or isinstance(override.value(), dict):
        return []
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    value: Any = override.value()
    listed = [_word(choice) for choice in (value if isinstance(value, list) else [value]) if choice is not None]
    return list(dict.fromkeys(listed))


def _word(choice: Any) -> str:
    """Format a choice as it is typed."""
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _no_option(group: str, choice: str, vocabulary: Vocabulary) -> InputError:
    there = " or ".join(f"{parent}={choice}" for parent in _groups_with(choice, vocabulary))
    options = vocabulary.options(group)
    instead = f"Type {there}." if there else nearest(choice, options)
    if choice in NOTHING and "none" in options:
        instead = f"Type {group}=none."
    further = f" {BESIDES[group]}" if group in BESIDES else ""
    return InputError(f"{group}={choice}", f"{group} has no option '{choice}'", instead + further)


def _groups_with(choice: str, vocabulary: Vocabulary) -> list[str]:
    """Groups at the root with an option of a name."""
    return [group for group in vocabulary.groups() if choice in vocabulary.options(group)]


def _of_file(error: Exception, vocabulary: Vocabulary) -> InputError:
    """Explain an error in a config file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        position = f"{error.problem_mark.name}, line {error.problem_mark.line + 1}"
        instead = "Check colons, quotes and indentation there"
        return InputError(position, f"it is not valid YAML: {error.problem}", instead)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        if not group:
            instead = "Type experiments=NAME for a file of settings in experiments/"
            return InputError(f"--config-name {choice}", "the verb decides which config is read", instead)
        return _no_option(group, choice, vocabulary)
    if NO_CHOICE in str(error):
        group = str(error).split("'")[1]
        why = "nothing that was chosen has this group"
        single = f"{group.replace('/', '.')}.NAME=VALUE"
        instead = f"Choose what has it first, such as another method; of a repeated run change single keys: {single}"
        return InputError(f"{group}=…", why, instead)
    where, _, what = str(error).partition(": ") if str(error).startswith("In '") else ("the options", "", str(error))
    text = " ".join(f"{what} {error.__cause__ or ''}".replace("\n", " ").split())
    return InputError(where, text, "python train.py --help lists groups and keys")
