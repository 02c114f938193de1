"""Records of a data set on the Hugging Face hub (or of a local folder in its layout), through ``datasets``."""

from collections.abc import Iterator
from typing import Any

from alignlab.data.files.record import Record
from alignlab.errors import InputError


def load(path: str, *, subset: str | None, folder: str | None, split: str, streaming: bool) -> Any:
    """Load one split.

    Args:
        path: Name on the hub, or a local folder.
        subset: Its configuration, where it has several.
        folder: Folder within it.
        split: Its split; slices such as ``train[:1000]`` are understood.
        streaming: Read while training instead of downloading first.

    Raises:
        InputError: There is no such data set, subset or split, or no way to reach it.
    """
    import datasets  # here, because it takes a second that no other source needs

    try:
        return datasets.load_dataset(path, name=subset, data_dir=folder, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        asked = f"data.path={path}" + (f" data.subset={subset}" if subset else "") + f" data.split={split}"
        why = str(error).split("\n")[0]
        raise InputError(asked, f"datasets cannot load it ({why})", "Check name, subset, split and network") from error


def hub_records(name: str, split: str, rows: Any) -> Iterator[Record]:
    """Yield the records of a loaded split, with origin ``name/split[row]``.

    Args:
        name: Name of the data set, for the origin.
        split: Name of the split, for the origin.
        rows: What ``load`` returned.
    """
    for index, row in enumerate(rows):
        yield Record(f"{name}/{split}[{index}]", row)
