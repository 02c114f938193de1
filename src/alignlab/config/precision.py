"""The precision of a run whose config leaves it open: mixed precision in bfloat16 on GPUs that compute in it."""

from collections.abc import Mapping
from typing import Any

FULL, MIXED = "32-true", "bf16-mixed"


def with_precision(config: dict[str, Any]) -> dict[str, Any]:
    """Replace ``trainer.precision: null``: by that of DeepSpeed's own config, or by what suits the device.

    Weights that FSDP2 gathers in 16 bits need no mixed precision.

    Args:
        config: Plain and resolved.

    Returns:
        The config, a copy if anything was replaced.
    """
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or trainer.get("precision", "given") is not None:
        return config
    gathers_narrow = _at(config, "strategy", "param_dtype") is not None
    chosen = FULL if gathers_narrow or not _computes_in_bfloat16(trainer.get("accelerator")) else MIXED
    for engine, precision in (("bf16", MIXED), ("fp16", "16-mixed")):
        if _at(config, "strategy", "config", engine, "enabled") is True:
            chosen = precision
    return config | {"trainer": trainer | {"precision": chosen}}


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _computes_in_bfloat16(accelerator: Any) -> bool:
    """Whether all GPUs that training uses compute in bfloat16; emulation is slow."""
    if accelerator == "cpu":
        return False
    import torch  # takes seconds, and is not needed on a CPU

    if not torch.cuda.is_available():
        return False
    numbers = range(torch.cuda.device_count())
    return all(torch.cuda.get_device_capability(number) >= (8, 0) for number in numbers)
