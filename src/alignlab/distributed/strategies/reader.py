"""PyTorch's reader of checkpoint folders, restricted such that the pickle of its metadata cannot run code."""

import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from alignlab.errors import InputError

ALLOWED = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("builtins", "set"),
    ("collections", "OrderedDict"),
}
"""Names that the metadata may use, besides dtypes and the classes of ``MODULES``."""

MODULES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint.planner",
)

FAULTS = (AttributeError, ImportError, LookupError, TypeError, ValueError)
"""Errors of a damaged pickle, besides ``UnpicklingError``."""

VALUES = (torch.dtype, torch.layout, torch.memory_format)


class _Unpickler(pickle.Unpickler):
    """Load only the classes and values that the metadata may use."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in ALLOWED or module in ("torch", *MODULES)
        found = super().find_class(module, name) if known and "." not in name else None
        is_class = isinstance(found, type) and found.__module__ in MODULES
        if not (is_class or isinstance(found, VALUES) or (module, name) in ALLOWED):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong there")
        return found


class Reader(FileSystemReader):
    """Open a checkpoint folder.

    ``read_metadata`` raises an ``InputError`` if the metadata is damaged or would run code.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = self._get_metadata_path(kwargs.get("rank"))
        try:
            with self.fs.create_stream(path, "rb") as file:
                metadata = _Unpickler(file).load()
            metadata.storage_meta = metadata.storage_meta or StorageMeta()
            metadata.storage_meta.load_id = self.load_id
        except (pickle.UnpicklingError, EOFError, *FAULTS) as error:
            why = f"its table of contents is not one that PyTorch writes ({error})"
            raise InputError(f"the checkpoint {self.path}", why, "Resume from another checkpoint") from error
        return metadata
