"""Fixtures shared by all tests."""

import os
import socket
from pathlib import Path

# Before any library reads them: no hub, no telemetry, no prompt, quiet tokenizers.
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
# Tiny models gain nothing from a second thread, and two processes that share the cores lose much.
os.environ.update(OMP_NUM_THREADS="1")

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data beside the repository; tests that need it skip without it."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no shared data beside the repository")
    return folder


@pytest.fixture(scope="session")
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
