"""The keys of the section ``data`` that are passed on to the data source."""

from collections.abc import Mapping
from typing import Any

from alignlab.config.build import locate
from alignlab.config.signatures import call_chain, parameters

SHARED = ("path", "format", "columns", "validation_path", "bad_rows", "streaming")
"""Keys of ``data`` that are passed to its source if it has such an argument and its node does not set it."""


def source_node(data: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the source, with the keys that are passed on from the section ``data``.

    Args:
        data: Plain section ``data``, whose ``source`` has a ``_target_``.

    Raises:
        InputError: The target cannot be imported.
    """
    node = data["source"]
    names = {name for function in call_chain(locate(node["_target_"])) for name in parameters(function)}
    return {key: data[key] for key in SHARED if key in data and key in names} | dict(node)
