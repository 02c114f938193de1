"""Strategies without sharding: one process, or a copy of the model per process (DDP)."""

from datetime import timedelta
from typing import Annotated

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from pydantic import Field

from alignlab.distributed.strategies.base import StaysOnDevice


class Single(SingleDeviceStrategy, StaysOnDevice):
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


class Copies(DDPStrategy, StaysOnDevice):
    """Lightning's strategy, which leaves the model on its device."""


def ddp(*, timeout_seconds: Annotated[float, Field(gt=0)]) -> Copies:
    """A copy of the model on every device, gradients averaged (nccl on GPUs, gloo on CPUs).

    Args:
        timeout_seconds: Time after which a rank that does not respond ends the job.
    """
    return Copies(timeout=timedelta(seconds=timeout_seconds))
