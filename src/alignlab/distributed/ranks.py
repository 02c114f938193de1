"""The ranks of a job that somebody started (torchrun, deepspeed, srun, submitit, or we), and what they agree on.

Before Lightning makes its process group, ranks speak through the store of the same address: one of them decides, the
others are told; one prepares data, the others wait; the first that fails speaks for all.
"""

import contextlib
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.distributed.rendezvous import rendezvous

from alignlab.errors import InputError, RunError

Decision = TypeVar("Decision")

LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    "deepspeed": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", "SLURM_NODEID"),
    "submitit": (
        "SUBMITIT_LOCAL_GLOBALID",
        "SUBMITIT_LOCAL_NTASKS",
        "SUBMITIT_LOCAL_LOCALID",
        "SUBMITIT_LOCAL_NTASKS",
        "SUBMITIT_LOCAL_NODEID",
    ),
}
"""Launchers and the variables in which they tell a process its rank, the number of ranks, both of them on its machine,
and the machine's number. We launch as torchrun does."""

PATIENCE = timedelta(minutes=30)
"""With ranks that have not started yet."""

SECONDS_BETWEEN_LOOKS = 0.1
"""While a rank waits for one that tokenises."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among the ranks of its job."""

    launcher: str
    rank: int
    num_ranks: int
    local_rank: int
    num_local_ranks: int
    node: int


def find_ranks() -> Ranks | None:
    """What a launcher says of this process; None where none started it, or (Slurm, submitit) it alone."""
    for launcher, names in LAUNCHERS.items():
        rank, num_ranks, local_rank, num_local, node = (os.environ.get(name) for name in names)
        if rank is None or num_ranks is None or (num_local is None and launcher == "torchrun"):
            continue
        if launcher in ("srun", "submitit") and (num_ranks == "1" or _is_batch_script()):
            continue
        each = int(num_local or int(num_ranks) // int(os.environ.get("SLURM_NNODES", 1)))
        return Ranks(launcher, int(rank), int(num_ranks), int(local_rank or 0), each, int(node or 0))
    return None


def _is_batch_script() -> bool:
    """Whether this is the one process of sbatch, which carries the variables of tasks that srun did not start."""
    return os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in os.environ


@cache
def ranks() -> Ranks | None:
    """As `find_ranks`; at the first call the environment is made that of torchrun, which every library understands."""
    found = find_ranks()
    if found is None:
        if "SLURM_NTASKS" in os.environ:
            # Lightning would take this process for one of that many; by this name it does not.
            os.environ["SLURM_JOB_NAME"] = "interactive"
        return None
    address, port = _meeting_point()
    told = {
        "RANK": found.rank,
        "WORLD_SIZE": found.num_ranks,
        "LOCAL_RANK": found.local_rank,
        "LOCAL_WORLD_SIZE": found.num_local_ranks,
        "GROUP_RANK": found.node,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": found.launcher,
    }
    for name, value in told.items():
        os.environ.setdefault(name, str(value))
    rank_zero_only.rank = found.rank  # Lightning read it when it was imported, and not every launcher's variables
    return found


def own_rank() -> int:
    """Rank of this process; 0 where it is alone."""
    place = ranks()
    return place.rank if place else 0


def _meeting_point() -> tuple[str, int]:
    """Where the ranks meet unless their launcher says so: the first machine, and a port that follows from the job."""
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job = int(os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID") or 0)
    return SLURMEnvironment.resolve_root_node_address(nodes), 15000 + (job + 7 * _step()) % 10000


def _step() -> int:
    step = os.environ.get("SLURM_STEP_ID", "0")
    return int(step) if step.isdigit() else 0


def settle(devices: int | str | list[int], num_nodes: int) -> tuple[int | str | list[int], int]:
    """Devices per machine and machines: where ranks are there already, theirs.

    Args:
        devices: As typed; 1 and ``auto`` go with any number of ranks.
        num_nodes: As typed; 1 goes with any.

    Raises:
        InputError: Another number of ranks is there than was typed.
    """
    found = ranks()
    if found is None:
        return devices, num_nodes
    there = found.num_local_ranks, found.num_ranks // found.num_local_ranks
    typed = len(devices) if isinstance(devices, list) else there[0] if devices in (1, "auto", -1, "-1") else devices
    if (int(typed), num_nodes if num_nodes > 1 else there[1]) != there:
        raise InputError(
            f"trainer.devices={devices} trainer.num_nodes={num_nodes}",
            f"{found.launcher} started {there[0]} processes on each of {there[1]} machines",
            f"Type trainer.devices={there[0]} trainer.num_nodes={there[1]}, or leave both out",
        )
    return devices if isinstance(devices, list) else there[0], there[1]


def without_rank_flag(words: Sequence[str]) -> list[str]:
    """The words without ``--local_rank=N``, which the deepspeed launcher adds."""
    return [word for word in words if not word.startswith(("--local_rank=", "--local-rank="))]


@cache
def _store() -> dist.Store:
    """The store of the job's address. It is kept: rank 0 may hold the server, which the process group then shares."""
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"alignlab/{attempt}", store)


def agree(decide: Callable[[], Decision]) -> Decision:
    """Let rank 0 decide, and tell the others; an exception of rank 0 is raised on every rank.

    Args:
        decide: Called on rank 0 only.

    Returns:
        The decision, pickled on its way to the others.
    """
    if ranks().rank > 0:
        _wait_for("decision")
        outcome = pickle.loads(_store().get("decision"))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
    try:
        decision = decide()
    except (InputError, RunError) as error:
        _store().set("decision", pickle.dumps(error))
        raise
    except Exception as error:
        _store().set("decision", pickle.dumps(RuntimeError(str(error))))
        raise
    _store().set("decision", pickle.dumps(decision))
    return decision


def _wait_for(key: str) -> None:
    """Wait until another rank has set a key; asked again and again, since the store's own wait holds signals back."""
    while not _store().check([key]):
        time.sleep(SECONDS_BETWEEN_LOOKS)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[bool]:
    """Run the block on the first rank of each machine, then on its others, so that these find what it left on the disk.

    Yields:
        Whether this rank is a first one.
    """
    place = ranks()
    if place is None or place.num_local_ranks == 1:
        yield True
        return
    done = f"prepared/{place.node}"
    if place.local_rank > 0:
        _wait_for(done)
    try:
        yield place.local_rank == 0
    finally:
        if place.local_rank == 0:
            _store().set(done, "")


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Let the error of the rank that fails first out of the block; the others, which fail of it, end without a word."""
    try:
        yield
    except Exception as error:
        if ranks() is not None and not _is_first_to_fail():
            sys.exit(2 if isinstance(error, InputError) else 1)
        raise


def _is_first_to_fail() -> bool:
    try:
        return _store().add("failures", 1) == 1
    except RuntimeError:  # the store went with rank 0, which may have had no time for a word
        return True
