"""Start the ranks of a job on this machine with torch's elastic launcher, and end them together.

The parent composes the config and makes the run's folder; every rank gets both. A rank that fails writes a report, from
which the parent prints the first error once.
"""

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alignlab.errors import InputError, RunError
from alignlab.system.credentials import masked
from alignlab.system.processes import end_with_parent, leaving_on_signals

SECONDS_TO_STOP = 300
"""Time for ranks to write their checkpoint after a signal to the parent, before they are killed."""

SECONDS_AFTER_DEATH = 5
"""Time from the end of a failed rank until the others are killed, which may hang in a collective."""

STOPPED = {128 + signal.SIGTERM, 128 + signal.SIGINT}
"""Exit codes of a rank that stopped because of a signal."""


def uses_cuda(accelerator: str) -> bool:
    """Whether training runs on CUDA devices.

    Args:
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``gpu``.
    """
    return accelerator != "cpu" and torch.cuda.device_count() > 0


def num_local_processes(devices: int | str | list[int], accelerator: str) -> int:
    """Number of processes that this machine needs for the requested devices.

    Args:
        devices: A number, a list of device indices, or ``auto``.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``gpu``.

    Raises:
        InputError: ``devices`` is none of these.
    """
    cuda = torch.cuda.device_count() if uses_cuda(accelerator) else 0
    if isinstance(devices, list):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return max(1, cuda)
    if isinstance(devices, int) or str(devices).isdigit():
        return int(devices)
    raise InputError(
        f"trainer.devices={devices}", "it is not a number of devices", "Type trainer.devices=2 or [0,1] or auto"
    )


def refuse_other_machines(num_nodes: int, num_processes: int) -> None:
    """Refuse a job on several machines that was not started by a launcher.

    Args:
        num_nodes: Machines of the job.
        num_processes: Ranks per machine, for the message.

    Raises:
        InputError: ``num_nodes`` is more than one.
    """
    if num_nodes > 1:
        words = " ".join(sys.argv[1:]) or "[group=option] [key=value]"
        raise InputError(
            f"trainer.num_nodes={num_nodes}",
            "one process cannot start ranks on other machines",
            f"On each of the machines type: torchrun --nnodes {num_nodes} --nproc-per-node {num_processes}"
            f" --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 train.py {words}\n"
            f"or within Slurm: srun --nodes {num_nodes} --ntasks-per-node {num_processes} python train.py {words}",
        )


def launch(entry: Callable[..., None], *arguments: Any, num_processes: int) -> None:
    """Run a function in several new processes and wait for them; if one fails, all are ended.

    Args:
        entry: Function at the top level of a module, so that the ranks can import it.
        arguments: Arguments of ``entry``.
        num_processes: Ranks on this machine.

    Raises:
        InputError, RunError: The error of the first rank that failed.
        SystemExit: A rank failed for another reason (1, with its error), or the ranks were stopped by a signal.
    """
    # The total number of threads stays the same: ranks on a CPU would otherwise compete for its cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // num_processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_STOP))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        monitor_interval=0.2,
        # A terminal sends Ctrl-C to the ranks too. If the parent forwarded it, they would get a second one, which ends
        # them without saving.
        signals_to_handle="SIGTERM",
    )
    with tempfile.TemporaryDirectory() as reports, _quiet_libraries(), _no_survivors():
        try:
            elastic_launch(config, _reported)(Path(reports), entry, *arguments)
        except SignalException as error:
            raise SystemExit(128 + error.sigval) from error
        except ChildFailedError as error:
            _raise_first(Path(reports), error.failures, num_processes)


def _reported(reports: Path, entry: Callable[..., None], *arguments: Any) -> None:
    """Run ``entry`` on a rank. Every error ends the process, else the other ranks would wait for it in a collective."""
    end_with_parent()
    try:
        with leaving_on_signals():
            entry(*arguments)
    except (InputError, RunError) as error:
        _report(reports, error)
        raise SystemExit(2 if isinstance(error, InputError) else 1) from error
    except Exception as error:
        _report(reports, masked(traceback.format_exc()))
        raise SystemExit(1) from error


def _report(reports: Path, failure: InputError | RunError | str) -> None:
    partial = reports / f".{os.environ['RANK']}"
    partial.write_bytes(pickle.dumps((time.time(), int(os.environ["RANK"]), failure)))
    partial.rename(reports / os.environ["RANK"])


def _raise_first(reports: Path, failures: dict[int, ProcessFailure], num_processes: int) -> NoReturn:
    """Raise the error that ended the job: a killed rank's, since the others fail because of it, else the first."""
    (rank, failure), *_ = failures.items()
    if failure.exitcode in STOPPED:
        raise SystemExit(failure.exitcode)
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        memory = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        raise SystemExit(f"Failed. Rank {rank} of {num_processes} was ended by {name}{memory}; so were the others.")
    found = [pickle.loads(path.read_bytes()) for path in reports.glob("[0-9]*")]
    _, rank, first = min(found, key=lambda report: report[:2], default=(0, rank, ""))
    if isinstance(first, (InputError, RunError)):
        raise first
    raise SystemExit(f"{first}Failed. Rank {rank} of {num_processes} ended first; the others were ended with it.")


@contextlib.contextmanager
def _no_survivors() -> Iterator[None]:
    """Kill the other ranks soon after one has failed: the launcher would first wait half a minute for them to stop.

    All ranks have ended when the context is left, also after an exception.
    """
    over = threading.Event()
    others = set(multiprocessing.active_children())

    def watch() -> None:
        ranks: set[Any] = set()
        while not over.wait(0.2):
            ranks |= set(multiprocessing.active_children()) - others
            if any(rank.exitcode not in (None, 0, *STOPPED) for rank in ranks):
                over.wait(SECONDS_AFTER_DEATH)
                for rank in ranks:
                    if rank.is_alive():
                        rank.kill()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for rank in set(multiprocessing.active_children()) - others:
            rank.kill()
            rank.join()


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence torch's log messages about processes that ended."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn")]
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
    yield
    for logger in loggers:
        logger.propagate = True
