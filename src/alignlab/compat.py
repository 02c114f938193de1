"""Combinations that cannot work, refused before any weight is loaded: when · because · instead.

A row stands here only for what was seen to fail or is stated to fail by the library concerned. What works is not
refused, however unwise.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch

from alignlab.errors import InputError, raise_all


class Config:
    """Read-only view of a plain config by dotted key; what is not there is None."""

    def __init__(self, plain: Mapping[str, Any]):
        self.plain = plain

    def __getitem__(self, key: str) -> Any:
        value: Any = self.plain
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value


class Row(NamedTuple):
    """A combination that cannot work.

    Args:
        keys: What was asked, shown with its values.
        when: Whether a config asks for it.
        because: Why it cannot be done.
        instead: What to type.
    """

    keys: tuple[str, ...]
    when: Callable[[Config], bool]
    because: str
    instead: str


def check(plain: Mapping[str, Any], rows: tuple[Row, ...] | None = None) -> None:
    """Raise all the reasons why a config cannot run.

    Args:
        plain: Resolved config as plain containers.
        rows: Combinations; ``ROWS`` by default.

    Raises:
        InputError: One or more rows apply.
    """
    config = Config(plain)
    raise_all([_refusal(row, config) for row in (ROWS if rows is None else rows) if row.when(config)])


def _refusal(row: Row, config: Config) -> InputError:
    asked = " ".join(f"{key}={_shown(config[key])}" for key in row.keys)
    return InputError(asked, row.because, row.instead)


def _shown(value: Any) -> Any:
    """A node by the name of its target."""
    value = value.get("_target_", value) if isinstance(value, Mapping) else value
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def _is(config: Config, key: str, *names: str) -> bool:
    """Whether the target of a node has one of the names."""
    return str(config[f"{key}._target_"]).rpartition(".")[2] in names


def _on_cpu(config: Config) -> bool:
    accelerator = config["trainer.accelerator"]
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def _lacks(package: str) -> bool:
    return find_spec(package) is None


NARROW_WEIGHTS = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
"""Precisions under which Lightning casts the whole module."""

SOURCE_KEYS = {"path": None, "format": "auto", "columns": {}, "validation_path": None}
"""Keys of ``data`` that only its source reads, with their defaults."""


def _unread(key: str) -> Row:
    """A key of ``data`` that was given, but that the chosen source does not take over."""
    return Row(
        (f"data.{key}", "data.source"),
        lambda c: c[f"data.{key}"] != SOURCE_KEYS[key] and key not in (c["data.source"] or {}),
        "this source does not read it",
        "Type data=jsonl for files, or leave it out",
    )


ROWS: tuple[Row, ...] = (
    *map(_unread, SOURCE_KEYS),
    Row(
        ("init_from", "model.path"),
        lambda c: c["init_from"] is not None and c["model.path"] not in (None, "pocket", c["init_from"]),
        "both name the weights to start from",
        "Type one of them",
    ),
    Row(
        ("strategy.name", "trainer.devices"),
        lambda c: c["strategy.name"] == "single" and c["trainer.devices"] not in (1, "1", [0], "auto"),
        "a single process trains on a single device",
        "Type strategy=ddp",
    ),
    Row(
        ("trainer.precision",),
        lambda c: (
            str(c["trainer.precision"]) in ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
        ),
        "it also narrows the model's rotary frequencies, after which positions beyond a few hundred blur",
        "Type trainer.precision=bf16-mixed, or model.dtype=bfloat16 with trainer.precision=32-true",
    ),
    Row(
        ("peft", "data.packing"),
        lambda c: _is(c, "peft", "PrefixTuningConfig") and c["data.packing"],
        "the learned keys stand before each row, so rows cannot be laid end to end",
        "Type data.packing=false",
    ),
    Row(
        ("peft.quantization",),
        lambda c: c["peft.quantization"] is not None and _lacks("bitsandbytes"),
        "bitsandbytes, which holds the weights in 4 or 8 bits, is not installed",
        "Type pip install 'alignlab[qlora]', or peft=lora",
    ),
    Row(
        ("trainer.precision", "trainer.accelerator"),
        lambda c: str(c["trainer.precision"]) in ("16", "16-mixed") and _on_cpu(c),
        "automatic mixed precision in float16 scales its gradients on CUDA only",
        "Type trainer.precision=bf16-mixed or trainer.precision=32-true",
    ),
    Row(
        ("trainer.accumulate_grad_batches",),
        lambda c: c["trainer.accumulate_grad_batches"] not in (None, 1),
        "accumulation follows from the batch sizes, and each step divides by its own totals",
        "Type data.global_batch_size=ROWS_PER_STEP data.batch_size_per_device=ROWS_AT_ONCE",
    ),
    Row(
        ("data.streaming", "data.order"),
        lambda c: c["data.streaming"] and c["data.order"] in ("by_length", "curriculum"),
        "a stream cannot be sorted: rows are read while training",
        "Type data.streaming=false, or data.order=shuffled (within a buffer) or data.order=as_is",
    ),
    Row(
        ("data.order", "data.order_column"),
        lambda c: c["data.order"] == "curriculum" and c["data.order_column"] is None,
        "a curriculum follows a numeric column, and none is named",
        "Type data.order_column=COLUMN",
    ),
)
