"""Turn errors of other libraries' readers into ``InputError``, and refuse invalid values in a model's config."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import httpx  # the HTTP library differs between releases
from safetensors import SafetensorError

from alignlab.errors import InputError, raise_all
from alignlab.system.paths import reason

READ_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
    *(ImportError, EOFError, re.error, SafetensorError, StrictDataclassError, httpx.HTTPError),
)
"""Errors of Transformers, PEFT and Safetensors for invalid files. ``tokenizers`` raises a bare ``Exception``."""

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
"""Not caused by the files."""

SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
)


@contextmanager
def opening(asked: str, what: str, instead: str) -> Iterator[None]:
    """Turn a library's error about files or a config into an ``InputError``.

    Args:
        asked: What the user typed.
        what: Start of the reason, such as ``AutoModel cannot read FOLDER``; the library's message follows.
        instead: What to type instead.

    Raises:
        InputError: The library raised an error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OUT_OF_MEMORY) or not (isinstance(error, READ_ERRORS) or type(error) is Exception):
            raise
        raise InputError(asked, f"{what}: {reason(error)}", instead) from error


def refuse_values(config: Any, asked: str) -> None:
    """Refuse invalid sizes and dropout rates, and numbers of heads that do not divide the size that they split.

    Args:
        config: A Transformers config, or its keys as a mapping.
        asked: Prefix of the key in errors, such as ``model.config.``.

    Raises:
        InputError: Reports all invalid values together.
    """
    given = config if isinstance(config, Mapping) else vars(config.get_text_config())
    sizes = {key: given[key] for key in SIZES if given.get(key) is not None}
    whole = {key: size for key, size in sizes.items() if type(size) is int and size >= 1}
    # Some architectures give one size per layer.
    wrong = {key: size for key, size in sizes.items() if key not in whole and not isinstance(size, list | tuple)}
    faults = [InputError(f"{asked}{key}={size}", "it is not a size", "Write 1 or more") for key, size in wrong.items()]
    shares = {key: given[key] for key in given if key.endswith(("dropout", "pdrop"))}
    faults += [
        InputError(f"{asked}{key}={share}", "it is not a dropout rate", "Write 0 or more, below 1")
        for key, share in shares.items()
        if share is not None and not (isinstance(share, int | float) and 0 <= share < 1)
    ]
    heads, shared = whole.get("num_attention_heads"), whole.get("num_key_value_heads")
    width = whole.get("hidden_size", 0)
    # A mapping does not suffice: an architecture may set its own head size.
    if heads and not isinstance(config, Mapping) and "head_dim" not in sizes and width % heads:
        why = f"{heads} attention heads do not divide a hidden size of {width}"
        faults.append(InputError(f"{asked}num_attention_heads={heads}", why, "Write a divisor, or set head_dim too"))
    if whole.get("head_dim", 0) % 2 and given.get("rope_parameters"):
        why = "rotary position embeddings rotate pairs of numbers"
        faults.append(InputError(f"{asked}head_dim={whole['head_dim']}", why, "Write an even number"))
    if heads and shared and heads % shared:
        why = f"{shared} key-value heads do not divide {heads} attention heads"
        faults.append(InputError(f"{asked}num_key_value_heads={shared}", why, "Write a divisor"))
    raise_all(faults)
