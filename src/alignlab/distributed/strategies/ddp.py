"""Strategies without sharding: one process, or a copy of the model per process (DDP)."""

from datetime import timedelta
from typing import Annotated

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from pydantic import Field


class Single(SingleDeviceStrategy):
    """Everything on the one device that the trainer's ``accelerator`` and ``devices`` come to.

    Lightning's own class wants the device before the trainer knows it.
    """

    parallel_devices: list[torch.device] | None = None
    """Lightning's trainer sets them."""

    @property
    def root_device(self) -> torch.device:
        """The device; the CPU until the trainer is made."""
        return self.parallel_devices[0] if self.parallel_devices else super().root_device


def single() -> Single:
    """One process on one device."""
    return Single()


def ddp(*, timeout_seconds: Annotated[float, Field(gt=0)]) -> DDPStrategy:
    """A copy of the model on every device, gradients averaged (nccl on GPUs, gloo on CPUs).

    Args:
        timeout_seconds: Time after which a rank that does not respond ends the job.
    """
    return DDPStrategy(timeout=timedelta(seconds=timeout_seconds))
