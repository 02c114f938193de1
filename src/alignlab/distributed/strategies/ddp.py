"""Strategies without sharding: one process, or a copy of the model per process (DDP)."""

from datetime import timedelta
from typing import Annotated

from lightning.pytorch.strategies import DDPStrategy, Strategy
from pydantic import Field


def single() -> str:
    """One process on one device."""
    return "auto"


def ddp(*, timeout_seconds: Annotated[float, Field(gt=0)]) -> Strategy:
    """A copy of the model on every device, gradients averaged (nccl on GPUs, gloo on CPUs).

    Args:
        timeout_seconds: Time after which a rank that does not respond ends the job.
    """
    return DDPStrategy(timeout=timedelta(seconds=timeout_seconds))
