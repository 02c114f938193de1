"""Weights in PyTorch's older files, which are pickles: refused where opening them would run code."""

import re
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch

from alignlab.errors import InputError

FILES = ("pytorch_model*.bin", "adapter_model*.bin")
"""What Transformers and PEFT open where there is no safetensors file beside it."""

NAMED = re.compile(r"(?:GLOBAL|global|Unsupported class|function) ([\w.]+)")


def refuse_programs(folder: Path, asked: str) -> None:
    """Refuse weights that hold more than tensors and plain values, before anything opens them.

    Args:
        folder: Of a model or an adapter.
        asked: What the user typed.

    Raises:
        InputError: Names the file, and what it would run where that is known.
    """
    if any(folder.glob("*.safetensors")):
        return
    for file in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        try:
            torch.load(file, weights_only=True, map_location="meta", mmap=is_zipfile(file))
        except UnpicklingError as error:
            raise refusal(file, asked, error) from error
        except (OSError, RuntimeError, ValueError, EOFError, KeyError):
            continue  # damaged, which whoever reads it for its tensors tells


def refusal(file: Path | str, asked: str, error: UnpicklingError) -> InputError:
    """The refusal of a file that would run code.

    Args:
        file: Or the folder or hub id that it lies in.
        asked: What the user typed.
        error: What PyTorch said.
    """
    named = NAMED.search(str(error))
    why = f"{file} is a pickle that holds more than tensors{f' ({named[1]})' if named else ''}; opening it runs code"
    instead = (
        "Ask for a safetensors file, or convert it where it may do harm: safetensors.torch.save_file(torch.load(…))"
    )
    return InputError(asked, why, instead)
