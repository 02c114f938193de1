"""Weights in PyTorch's older pickle files: refused if opening them would run code."""

import re
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch

from alignlab.errors import InputError

FILES = ("pytorch_model*.bin", "adapter_model*.bin")
"""Files that Transformers and PEFT open if the folder has no safetensors file."""

NAMED = re.compile(r"(?:GLOBAL|global|Unsupported class|function) ([\w.]+)")


def refuse_programs(folder: Path, asked: str) -> None:
    """Refuse pickled weights that hold more than tensors and plain values, before they are opened.

    Args:
        folder: Folder of a model or an adapter.
        asked: What the user typed.

    Raises:
        InputError: A file would run code; names the file and, if known, the function that it would call.
    """
    if any(folder.glob("*.safetensors")):
        return
    for file in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        try:
            torch.load(file, weights_only=True, map_location="meta", mmap=is_zipfile(file))
        except UnpicklingError as error:
            raise refusal(file, asked, error) from error
        except (OSError, RuntimeError, ValueError, EOFError, KeyError):
            continue  # damaged: reported when its tensors are read


def refusal(file: Path | str, asked: str, error: UnpicklingError) -> InputError:
    """The error for a file that would run code.

    Args:
        file: The file, or the folder or hub id that contains it.
        asked: What the user typed.
        error: PyTorch's error.
    """
    named = NAMED.search(str(error))
    why = f"{file} is a pickle that holds more than tensors{f' ({named[1]})' if named else ''}; opening it runs code"
    instead = "Use a safetensors file, or convert it on an isolated machine: safetensors.torch.save_file(torch.load(…))"
    return InputError(asked, why, instead)
