"""Starting the processes of a job: composed once by the parent, run by every rank from the same saved config.

Where a launcher (torchrun, deepspeed, srun) has already started the ranks, they are used as they are.
"""

import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alignlab.errors import InputError

# Set by torchrun and deepspeed, by Slurm, and by ourselves.
LAUNCHED = ("RANK", "SLURM_PROCID")


def num_local_processes(devices: int | str | list[int], accelerator: str) -> int:
    """Processes that this machine needs for the devices asked for.

    Args:
        devices: A number, a list of device numbers, or ``auto``.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``gpu``.
    """
    cuda = torch.cuda.device_count() if accelerator != "cpu" else 0
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(1, cuda)
    return int(devices)


def is_launched() -> bool:
    """Whether this process is already a rank that some launcher started."""
    return any(name in os.environ for name in LAUNCHED)


def launch(entry: Callable[..., None], *arguments: Any, num_processes: int) -> None:
    """Run a function in several new processes and wait; a dead rank ends them all.

    Args:
        entry: Function of a module, so that the ranks can import it.
        arguments: What it is called with.
        num_processes: Ranks on this machine.

    Raises:
        InputError: The first rank to fail did so because of the user's input.
        RuntimeError: A rank failed for another reason; its traceback stands above.
        SystemExit: The ranks were stopped by a signal; carries their exit code.
    """
    # As many threads as before in all: ranks on a CPU would otherwise fight over the cores.
    threads = max(1, torch.get_num_threads() // num_processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        results = elastic_launch(config, _guarded)(entry, *arguments)
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RuntimeError(f"rank {rank} ended with exit code {failure.exitcode}; its error stands above") from error
    outcome = next((outcome for outcome in results.values() if outcome is not None), None)
    if isinstance(outcome, InputError):
        raise outcome
    if isinstance(outcome, int):
        raise SystemExit(outcome)


def _guarded(entry: Callable[..., None], *arguments: Any) -> InputError | int | None:
    """What a rank runs: the user's mistakes and clean stops travel to the parent as values, not as dead processes."""
    try:
        entry(*arguments)
    except InputError as error:
        return error
    except SystemExit as error:
        return error.code
    return None
