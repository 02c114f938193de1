"""Check that all keys of a composed config exist, and that all values have the right type and range."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.config.learning_rate import with_learning_rate
from alignlab.config.resolve import NO_RUN_DIR, resolved
from alignlab.config.schema.root import SECTIONS, Hints, Node, Nodes
from alignlab.config.schema.targets import check_nodes
from alignlab.config.schema.values import NOT_GIVEN, Findings, check_names, check_value, instead_of
from alignlab.config.sources import source_node
from alignlab.errors import InputError, raise_all
from alignlab.system.credentials import hide_all

Config = dict[str, Any]


def check(
    cfg: DictConfig, sections: dict[str, Hints] = SECTIONS, change: Callable[[Config], Config] | None = None
) -> Config:
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
    findings = Findings()
    plain, missing = _plain(cfg)
    plain = with_learning_rate(change(plain) if change else plain)
    plain = hide_all("", plain)  # some become secrets only by interpolation
    for key in filter(partial(_is_not_given, plain), missing):
        findings.errors.append(InputError(key, "it has no default and was not given", f"Type {key}=VALUE"))
    for path, hints in sections.items():
        values = plain.get(path, {}) if path else plain
        if isinstance(values, dict):
            _check_section(path, values, hints, findings)
    _check_all_nodes(plain, findings)
    raise_all(findings.all())
    return plain | {"run_dir": cfg.run_dir and plain["run_dir"]}


def check_keys(cfg: DictConfig, sections: dict[str, Hints]) -> Config:
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
        check_nodes(key, tree | {"source": _source(tree)} if key == "data" and _source(tree) else tree, findings)


def _source(data: Any) -> dict[str, Any]:
    """The node of the source, with the keys that are passed on from ``data``; empty without a source."""
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict) or "_target_" not in source:
        return {}
    try:
        return source_node(data)
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


def _check_section(path: str, values: dict[str, Any], hints: Hints, findings: Findings) -> None:
    source = _source(values) if path == "data" else {}
    passed_on = {key for key, value in values.items() if key in source and source[key] == value}
    check_names(path, values, hints.keys() | passed_on, findings)
    for key, hint in hints.items():
        dotted = f"{path}.{key}" if path else key
        if key in values and hint is Nodes and isinstance(values[key], dict):
            for name, node in values[key].items():
                check_value(f"{dotted}.{name}", node, Node | None, findings)
        elif key in values:
            check_value(dotted, values[key], hint, findings)
        else:
            findings.errors.append(InputError(dotted, "it is missing", instead_of(dotted)))
