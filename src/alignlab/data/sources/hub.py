"""Records of a data set on the Hugging Face hub (or of a local folder in its layout), through ``datasets``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow
from huggingface_hub.utils import httpx  # which transport library it is differs between releases

from alignlab.data.sources.files.record import Record
from alignlab.data.sources.files.values import table_record
from alignlab.errors import InputError
from alignlab.system.paths import reason


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

    asked = f"data.path={path}" + (f" data.subset={subset}" if subset else "") + f" data.split={split}"
    with _told(asked):
        return datasets.load_dataset(path, name=subset, data_dir=folder, split=split, streaming=streaming)


def hub_records(name: str, split: str, rows: Any) -> Iterator[Record]:
    """Yield the records of a loaded split, with origin ``name/split[row]``.

    Args:
        name: Name of the data set, for the origin.
        split: Name of the split, for the origin.
        rows: What ``load`` returned.

    Raises:
        InputError: The rows cannot be read to their end: a damaged cache, a lost connection, a missing decoder.
    """
    with _told(f"data.path={name} data.split={split}"):
        for index, row in enumerate(rows):
            yield table_record(f"{name}/{split}[{index}]", row)


@contextmanager
def _told(asked: str) -> Iterator[None]:
    """What ``datasets`` and all that it reads through may raise, in words."""
    from datasets.exceptions import DatasetsError

    told = (DatasetsError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)
    try:
        yield
    except (*told, httpx.HTTPError, pyarrow.ArrowException) as error:
        why = f"datasets cannot load it ({reason(error.__cause__ or error)})"
        raise InputError(asked, why, "Check name, subset, split and network") from error
