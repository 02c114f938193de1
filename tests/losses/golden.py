"""Values that TRL computed on recorded inputs, by family; ``tests/golden/README.md`` describes the file."""

import json
from functools import cache
from pathlib import Path

import torch

FILE = Path(__file__).parents[1] / "golden" / "trl.json"


@cache
def golden():
    """The whole file."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def cases(*families):
    """The cases of some families, for ``parametrize``."""
    return [case for case in golden()["cases"] if case["family"] in families]


def inputs(case):
    """The inputs of a case as float64 tensors, lists of other things as they are."""
    return {name: as_tensor(value) for name, value in golden()["inputs"][case["inputs"]].items()}


def as_tensor(value):
    try:
        exact = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError):
        return value
    return exact if torch.tensor(value).is_floating_point() else exact.long()


def flatten(values, mask):
    """Padded ``[S, T]`` to flat ``[N]``, and the owner of each token."""
    sequence_ids = torch.arange(len(mask))[:, None].expand_as(mask)
    return values[mask.bool()], sequence_ids[mask.bool()]
