"""PyTorch's reader of checkpoint folders, whose table of contents is a pickle, without what a pickle can run."""

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
"""Besides number formats and the classes of ``MODULES``, what a table of contents is made of."""

MODULES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint.planner",
)

FAULTS = (AttributeError, ImportError, LookupError, TypeError, ValueError)
"""What a damaged pickle raises besides its own errors."""

VALUES = (torch.dtype, torch.layout, torch.memory_format)


class _Unpickler(pickle.Unpickler):
    """Finds what a table of contents is made of and nothing that does anything."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in ALLOWED or module in ("torch", *MODULES)
        found = super().find_class(module, name) if known and "." not in name else None
        is_class = isinstance(found, type) and found.__module__ in MODULES
        if not (is_class or isinstance(found, VALUES) or (module, name) in ALLOWED):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong there")
        return found


class Reader(FileSystemReader):
    """Opens a checkpoint folder.

    Raises:
        InputError: On ``read_metadata``: its table of contents would run something, or is none.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents, as PyTorch's own reader gives it."""
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
