"""One process, or a copy of the model per process."""

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
        timeout_seconds: After which a rank that does not answer ends the job.
    """
    return DDPStrategy(timeout=timedelta(seconds=timeout_seconds))
