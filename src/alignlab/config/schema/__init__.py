"""Check that all keys of a composed config exist, and that all values have the right type and range."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.config.learning_rate import with_learning_rate
from alignlab.config.outline import Unclear, outline
from alignlab.config.precision import with_precision
from alignlab.config.resolve import NO_RUN_DIR, resolved
from alignlab.config.schema.root import SECTIONS, Hints, Node, Nodes
from alignlab.config.schema.targets import check_nodes, check_spelling
from alignlab.config.schema.values import NOT_GIVEN, Findings, check_names, check_value, instead_of
from alignlab.config.sources import Read, source_node
from alignlab.config.target import locate
from alignlab.errors import InputError, raise_all
from alignlab.system.credentials import hide_all

Config = dict[str, Any]
Sections = dict[str, Hints]


def check(cfg: DictConfig, sections: Sections = SECTIONS, change: Callable[[Config], Config] | None = None) -> Config:
    """Resolve and check a composed config, from options, experiment files and the command line.

    A config is resolved only here; the result is passed on and never changed.

    Args:
        cfg: Composed config; ``run_dir`` may be null.
        sections: Sections by dotted key, the root under ``""``.
        change: Function of the resolved config, whose result is checked instead.

    Returns:
        The resolved config as plain containers. An interpolation of a null ``run_dir`` gives ``resolve.NO_RUN_DIR``.

    Raises:
        InputError: Keys do not exist (each is reported with the nearest that does), values are missing, of the wrong
            type or out of range, or targets cannot be imported. All are reported together.
    """
    plain, missing = _plain(cfg)
    plain = with_precision(with_learning_rate(change(plain) if change else plain))
    plain = hide_all("", plain)  # some become secrets only by interpolation
    findings = Findings()
    for key in filter(partial(_is_not_given, plain), missing):
        findings.errors.append(_not_given(key))
    for path, hints in sections.items():
        values = plain.get(path, {}) if path else plain
        if isinstance(values, dict):
            _check_section(path, values, hints, findings)
    _check_all_nodes(plain, findings)
    raise_all(findings.all())
    return plain | {"run_dir": cfg.run_dir and plain["run_dir"]}


def refuse_misspelt(cfg: DictConfig, sections: Sections, words: Sequence[str]) -> None:
    """Refuse keys that do not exist, without resolving the config, and without the imports of ``check``.

    It refuses only if ``check`` would find nothing further in what was typed: where each typed ``key=value`` is such a
    key, or a value of a section, which is checked here too.

    Args:
        cfg: Composed config.
        sections: As in ``check``.
        words: Overrides as prepared for Hydra, in which those of keys begin with ``+`` or ``~``.

    Raises:
        InputError: As in ``check``.
    """
    plain = hide_all("", OmegaConf.to_container(cfg, resolve=False))
    typed = {word.partition("=")[0].lstrip("+~") for word in words if word.startswith(("+", "~"))}
    findings = Findings()
    for key in _missing("", plain):
        findings.errors.append(_not_given(key))
    try:
        for path, hints in sections.items():
            values = plain.get(path, {}) if path else plain
            if isinstance(values, dict):
                _check_section_names(path, values, hints, findings, outline)
                typed -= set(_checked_values(path, values, hints, typed, findings))
        for key, tree in plain.items():
            check_spelling(key, _with_source(key, tree, outline), findings)
    except (Unclear, RecursionError):  # the latter by names that are imported in a circle
        return
    unknown = {key for key in typed for name in findings.unknown if f"{key}.".startswith(f"{name}.")}
    if unknown and typed == unknown and not any("${" in word for word in words):
        raise_all(findings.all())


def _checked_values(
    path: str, values: dict[str, Any], hints: Hints, typed: set[str], findings: Findings
) -> Iterator[str]:
    """Check the typed values of a section that hold no further keys, and yield their dotted keys."""
    for key, hint in hints.items():
        dotted = f"{path}.{key}" if path else key
        if dotted in typed and key in values and not isinstance(values[key], dict):
            check_value(dotted, values[key], hint, findings)
            yield dotted


def check_keys(cfg: DictConfig, sections: Sections) -> Config:
    """Resolve and check the config of a verb other than train.

    Args:
        cfg: Composed config.
        sections: Sections by dotted key, the root under ``""``.

    Returns:
        The resolved config as plain containers.

    Raises:
        InputError: As in ``check``.
    """
    findings = Findings()
    plain, missing = _plain(cfg)
    plain = hide_all("", plain)
    for key in filter(partial(_is_not_given, plain), missing):
        instead = "Type a run after the verb, such as runs/sft/NAME" if key == "from" else f"Type {key}=VALUE"
        findings.errors.append(InputError(key, "it has no default and was not given", instead))
    for path, hints in sections.items():
        values = plain.get(path, {}) if path else {key: value for key, value in plain.items() if key not in missing}
        if isinstance(values, dict):
            _check_section(path, values, {key: hint for key, hint in hints.items() if key not in missing}, findings)
    _check_all_nodes(plain, findings)
    raise_all(findings.all())
    return plain


def _check_all_nodes(plain: Config, findings: Findings) -> None:
    """Check all nodes; that of the data source with the keys that it gets from ``data``."""
    for key, tree in plain.items():
        check_nodes(key, _with_source(key, tree, locate), findings)


def _not_given(key: str) -> InputError:
    return InputError(key, "it has no default and was not given", f"Type {key}=VALUE")


def _with_source(key: str, tree: Any, read: Read) -> Any:
    """A section; ``data`` with the keys that its source gets."""
    return tree | {"source": source} if key == "data" and (source := _source(tree, read)) else tree


def _source(data: Any, read: Read) -> dict[str, Any]:
    """The node of the source, with the keys that are passed on from ``data``; empty without a source."""
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict) or "_target_" not in source:
        return {}
    try:
        return source_node(data, read)
    except InputError:  # reported by the check of the node
        return source


def _plain(cfg: DictConfig) -> tuple[Config, list[str]]:
    """The resolved config, with placeholders for ``run_dir`` and missing values, and the keys of missing values."""
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    unresolved = OmegaConf.to_container(cfg, resolve=False)
    missing = list(_missing("", unresolved))
    for key in missing:
        OmegaConf.update(cfg, key, NOT_GIVEN)
    if unresolved.get("run_dir", "") is None:
        cfg.run_dir = NO_RUN_DIR
    return resolved(cfg), missing


def _is_not_given(plain: Mapping[str, Any], key: str) -> bool:
    head, _, rest = key.partition(".")
    value = plain.get(head) if isinstance(plain, Mapping) else None
    return _is_not_given(value, rest) if rest else value == NOT_GIVEN


def _missing(path: str, tree: Any) -> Iterator[str]:
    """Dotted keys of mandatory values (``???``)."""
    if tree == "???":
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from _missing(f"{path}.{key}" if path else key, value)


def _check_section_names(path: str, values: dict[str, Any], hints: Hints, findings: Findings, read: Read) -> None:
    source = _source(values, read) if path == "data" else {}
    same = {key: (value, f"${{{path}.{key}}}") for key, value in values.items()}
    passed_on = {key for key in values if key in source and source[key] in same[key]}
    check_names(path, values, hints.keys() | passed_on, findings)


def _check_section(path: str, values: dict[str, Any], hints: Hints, findings: Findings) -> None:
    _check_section_names(path, values, hints, findings, locate)
    for key, hint in hints.items():
        dotted = f"{path}.{key}" if path else key
        if key in values and hint is Nodes and isinstance(values[key], dict):
            for name, node in values[key].items():
                check_value(f"{dotted}.{name}", node, Node | None, findings)
        elif key in values:
            check_value(dotted, values[key], hint, findings)
        else:
            findings.errors.append(InputError(dotted, "it is missing", instead_of(dotted)))
