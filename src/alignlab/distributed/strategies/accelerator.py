"""The device that DeepSpeed takes, decided before it is imported."""

import os

import torch


def prefer_cpu_without_cuda() -> None:
    """Where there is no CUDA device, let DeepSpeed take the CPU without a warning that it found nothing else."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
