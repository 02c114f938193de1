"""What the source of rows takes from the section ``data``, where it is said once."""

from collections.abc import Mapping
from typing import Any

from alignlab.config.build import locate
from alignlab.config.signatures import chain, parameters

SHARED = ("path", "format", "columns", "validation_path", "bad_rows", "streaming")
"""Keys of ``data`` that its source takes, if it has an argument of the name and its own node gives no other value."""


def source_node(data: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the source with what it takes from the section around it.

    Args:
        data: Section ``data``, plain; ``source`` has a ``_target_``.

    Raises:
        InputError: The target cannot be imported.
    """
    node = data["source"]
    names = {name for function in chain(locate(node["_target_"])) for name in parameters(function)}
    return {key: data[key] for key in SHARED if key in data and key in names} | dict(node)
