"""Which settings differ between runs, and which runs differ by their seed only."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.report.records import Record
from alignlab.run_folder.naming import name_of

NOT_COMPARED = ("run_dir", "resume", "overwrite", "debug", "launcher", "objective", "tags", "logger")
"""Sections that say where a run is stored and shown, and how it is started."""

FIRST = ("method", "model", "peft", "data", "optimizer")
"""Groups in whose order settings are shown; the others follow as in the config."""

SEED = "seed"
MISSING = object()


def differing(records: Sequence[Record]) -> dict[str, list[Any]]:
    """Settings with several values among the runs that have them.

    ``method._target_`` counts as ``method``, with the name of its target as value; so do the other groups.

    Args:
        records: Runs.

    Returns:
        Dotted key → the value of each run; ``MISSING`` for runs without the setting. Groups come first.
    """
    settings = [settings_of(record) for record in records]
    keys = dict.fromkeys(key for one in settings for key in one)
    columns = {key: [one.get(key, MISSING) for one in settings] for key in keys}
    several = {key: values for key, values in columns.items() if len(_distinct(values)) > 1}
    return dict(sorted(several.items(), key=_place))


def _place(item: tuple[str, Any]) -> tuple[bool, int]:
    """Groups before single settings, and both in the order of ``FIRST``."""
    key = item[0]
    group = key.split(".")[0]
    return key == SEED or "." in key, FIRST.index(group) if group in FIRST else len(FIRST)


def settings_of(record: Record) -> dict[str, Any]:
    """The settings that are compared, with ``_target_`` folded into its group: ``method: dpo``."""
    kept = {key: value for key, value in record.settings.items() if key.split(".")[0] not in NOT_COMPARED}
    return {
        key.removesuffix("._target_"): name_of(str(value)) if key.endswith("._target_") else value
        for key, value in kept.items()
    }


def _distinct(values: Sequence[Any]) -> set[str]:
    return {cell(value) for value in values if value is not MISSING}


def pooled(records: Sequence[Record], columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Record]]:
    """Runs by what differs between them besides the seed.

    Args:
        records: Runs.
        columns: Of ``differing``.

    Returns:
        Label, such as ``method=dpo optimizer.lr=0.001``, → runs that differ by their seed only.
    """
    groups: dict[str, list[Record]] = {}
    for record, text in zip(records, labels(columns, len(records)), strict=True):
        groups.setdefault(text, []).append(record)
    return groups


def labels(columns: Mapping[str, Sequence[Any]], num_runs: int) -> list[str]:
    """The settings of each run that tell it from others, besides the seed, as one types them.

    A setting that follows from those before it, such as the β of a method, is left out.

    Args:
        columns: Of ``differing``.
        num_runs: Number of runs.
    """
    texts: list[list[str]] = [[] for _ in range(num_runs)]
    for key, values in columns.items():
        having = [index for index, value in enumerate(values) if value is not MISSING]
        known = {tuple(texts[index]) for index in having}
        if key == SEED or len({(*texts[index], cell(values[index])) for index in having}) == len(known):
            continue
        for index in having:
            texts[index].append(f"{key}={cell(values[index])}")
    return [" ".join(text) or "all runs" for text in texts]


def cell(value: Any) -> str:
    """A setting as one types it; empty where there is none."""
    if value is MISSING:
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
