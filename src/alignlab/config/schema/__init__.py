"""Is every key of a composed config real, and every value of its type and in its range?"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignlab.config.resolve import NO_RUN_DIR, resolved
from alignlab.config.schema.root import SECTIONS, Hints, Node, Nodes
from alignlab.config.schema.targets import check_nodes
from alignlab.config.schema.values import NOT_GIVEN, Findings, check_names, check_value
from alignlab.errors import InputError, raise_all
from alignlab.system.credentials import hide_all


def check(cfg: DictConfig, sections: dict[str, Hints] = SECTIONS) -> dict[str, Any]:
    """Check a composed config, whatever its parts came from (options, experiment files, the command line).

    Args:
        cfg: Composed config; ``run_dir`` may still be null.
        sections: Sections by dotted key, the root under ``""``.

    Returns:
        The config with its interpolations resolved, as plain containers; where one names a ``run_dir`` that is not
        decided yet stands ``resolve.NO_RUN_DIR``.

    Raises:
        InputError: Keys that do not exist, each with the nearest that does; missing values; wrong types; values out of
            range; targets that cannot be imported. All together.
    """
    findings = Findings()
    plain = _plain(cfg, findings)
    for path, hints in sections.items():
        values = plain.get(path, {}) if path else plain
        if isinstance(values, dict):
            _check_section(path, values, hints, findings)
    for key, tree in plain.items():
        check_nodes(key, tree, findings)
    raise_all(findings.all())
    return plain | {"run_dir": cfg.run_dir and plain["run_dir"]}


def _plain(cfg: DictConfig, findings: Findings) -> dict[str, Any]:
    """The config resolved, with stand-ins for what only the run will know or the user has not given."""
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    unresolved = OmegaConf.to_container(cfg, resolve=False)
    for key in _missing("", unresolved):
        findings.errors.append(InputError(key, "it has no default and was not given", f"Type {key}=VALUE"))
        OmegaConf.update(cfg, key, NOT_GIVEN)
    if unresolved.get("run_dir", "") is None:
        cfg.run_dir = NO_RUN_DIR
    return hide_all("", resolved(cfg))  # what only became a secret when it was put together


def _missing(path: str, tree: Any) -> Iterator[str]:
    """Dotted keys that stand as ``???``: to be given by whoever picks the option."""
    if tree == "???":
        yield path
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield from _missing(f"{path}.{key}" if path else key, value)


def _check_section(path: str, values: dict[str, Any], hints: Hints, findings: Findings) -> None:
    source = values.get("source") if path == "data" else None
    source = source if isinstance(source, dict) else {}
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
            findings.errors.append(InputError(dotted, "it is missing", f"Type {dotted}=VALUE"))
