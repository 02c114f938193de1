"""Records of a data set on the Hugging Face hub (or of a local folder in its layout), through ``datasets``."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow
from huggingface_hub.utils import httpx  # the HTTP library differs between releases of huggingface_hub

from alignlab.data.sources.files.record import Record
from alignlab.data.sources.files.values import table_record
from alignlab.errors import InputError
from alignlab.system.paths import reason


def load(path: str, *, subset: str | None, folder: str | None, split: str, streaming: bool) -> Any:
    """Load one split.

    Args:
        path: Name on the hub, or a local folder.
        subset: Configuration of the data set, if it has several.
        folder: Folder within the data set.
        split: Split, or a slice of one such as ``train[:1000]``.
        streaming: Read while training instead of downloading first.

    Raises:
        InputError: There is no such data set, subset or split, or no way to reach it.
    """
    import datasets  # imported here, because it takes a second that other sources do not need

    asked = f"data.path={path}" + (f" data.subset={subset}" if subset else "") + f" data.split={split}"
    with _as_input_error(asked):
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
    with _as_input_error(f"data.path={name} data.split={split}"):
        for index, row in enumerate(rows):
            yield table_record(f"{name}/{split}[{index}]", row)


@contextmanager
def _as_input_error(asked: str) -> Iterator[None]:
    """Raise the errors of ``datasets`` and of the libraries that it reads with as ``InputError``."""
    from datasets.exceptions import DatasetsError

    errors = (DatasetsError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)
    try:
        yield
    except (*errors, httpx.HTTPError, pyarrow.ArrowException) as error:
        why = f"datasets cannot load it ({reason(error.__cause__ or error)})"
        raise InputError(asked, why, "Check name, subset, split and network") from error
