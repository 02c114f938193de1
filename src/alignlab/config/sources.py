"""The keys of the section ``data`` that are passed on to the data source."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignlab.config.signatures import call_chain, parameters
from alignlab.config.target import locate

SHARED = ("path", "format", "columns", "validation_path", "bad_rows", "streaming")
"""Keys of ``data`` that are passed to its source if it has such an argument and its node does not set it."""


Read = Callable[[str], Callable[..., Any]]
"""Finds a target, or an outline of it, by its dotted path."""


def source_node(data: Mapping[str, Any], read: Read = locate) -> dict[str, Any]:
    """The node of the source, with the keys that are passed on from the section ``data``.

    Args:
        data: Plain section ``data``, whose ``source`` has a ``_target_``.
        read: Finds the target: ``locate`` or ``outline``.

    Raises:
        InputError: The target cannot be imported.
    """
    node = data["source"]
    names = {name for function in call_chain(read(node["_target_"])) for name in parameters(function)}
    return {key: data[key] for key in SHARED if key in data and key in names} | dict(node)


def data_sets(node: Mapping[str, Any]) -> dict[str, bool]:
    """The data sets of a source by path or name, in order, and whether they are on the hub.

    Args:
        node: Node of the source, with the keys that are passed on; of a mixture, those of its parts are inside.
    """
    if isinstance(node.get("sources"), Mapping):
        return {name: on_hub for part in node["sources"].values() for name, on_hub in data_sets(part).items()}
    kind, path = str(node["_target_"]).rpartition(".")[2], node.get("path") or node.get("name")
    names = path if isinstance(path, list) else [path or kind.lower()]
    return {str(name): kind == "Hub" and not Path(str(name)).exists() for name in names}
