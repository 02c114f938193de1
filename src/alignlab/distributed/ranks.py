"""Ranks of a job started by torchrun, deepspeed, srun, submitit or alignlab, and their communication before training.

Before Lightning makes its process group, ranks communicate through the store at the same address: rank 0 makes
decisions and sends them to the others; one rank per machine prepares data while the others wait; only the first rank
that fails reports its error. Without a launcher nothing of torch is imported here.
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
from typing import TYPE_CHECKING, TypeVar

from alignlab.errors import InputError, RunError

if TYPE_CHECKING:
    from torch.distributed import Store

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
"""Launchers and their environment variables: rank, number of ranks, local rank, number of local ranks, and index of the
machine. ``launch`` sets those of torchrun."""

NUM_MACHINES = {"torchrun": "GROUP_WORLD_SIZE", "deepspeed": "CROSS_SIZE"}
"""Variables with the number of machines, of launchers that set one on every machine."""

RENDEZVOUS_TIMEOUT = timedelta(minutes=30)
"""How long to wait for ranks that have not started yet."""

POLL_SECONDS = 0.1
"""Interval at which a waiting rank checks the store."""


@dataclass(frozen=True)
class Ranks:
    """Position of this process among the ranks of its job.

    Args:
        launcher: A name of ``LAUNCHERS``.
        rank: Global rank.
        num_ranks: Ranks of the job.
        local_rank: Rank on this machine.
        num_local_ranks: Ranks on this machine.
        node: Index of this machine.
    """

    launcher: str
    rank: int
    num_ranks: int
    local_rank: int
    num_local_ranks: int
    node: int


def find_ranks() -> Ranks | None:
    """Read the launcher's variables; ``None`` without a launcher, or if Slurm or submitit started a single process."""
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
    """Whether this is the process of sbatch, whose variables describe tasks that srun has not started."""
    return os.environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in os.environ


@cache
def ranks() -> Ranks | None:
    """``find_ranks``; the first call also sets the variables of torchrun, which every library understands."""
    found = find_ranks()
    if found is None:
        if "SLURM_NTASKS" in os.environ:
            # Lightning would expect that many processes; under this job name it does not.
            os.environ["SLURM_JOB_NAME"] = "interactive"
        return None
    address, port = _main_address()
    variables = {
        "RANK": found.rank,
        "WORLD_SIZE": found.num_ranks,
        "LOCAL_RANK": found.local_rank,
        "LOCAL_WORLD_SIZE": found.num_local_ranks,
        "GROUP_RANK": found.node,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": found.launcher,
    }
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = found.rank  # Lightning sets it at import, and not from every launcher's variables
    return found


def own_rank() -> int:
    """Rank of this process; 0 without a launcher."""
    found = ranks()
    return found.rank if found else 0


def _main_address() -> tuple[str, int]:
    """Main address and port for launchers that set none: the first machine, and a port derived from the job."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job = int(os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID") or 0)
    return SLURMEnvironment.resolve_root_node_address(nodes), 15000 + (job + 7 * _step()) % 10000


def _step() -> int:
    step = os.environ.get("SLURM_STEP_ID", "0")
    return int(step) if step.isdigit() else 0


def settle(devices: int | str | list[int], num_nodes: int) -> tuple[int | str | list[int], int]:
    """Devices per machine and number of machines: those of the launcher, or without one as typed.

    Args:
        devices: As typed; 1 and ``auto`` match any number of ranks.
        num_nodes: As typed; 1 matches any number of machines.

    Raises:
        InputError: The launcher started another number of ranks than typed, or not the same on every machine.
    """
    found = ranks()
    if found is None:
        return devices, num_nodes
    _refuse_unequal(found)
    local, nodes = found.num_local_ranks, found.num_ranks // found.num_local_ranks
    typed = len(devices) if isinstance(devices, list) else local if devices in (1, "auto", -1, "-1") else devices
    if (int(typed), num_nodes if num_nodes > 1 else nodes) != (local, nodes):
        raise InputError(
            f"trainer.devices={devices} trainer.num_nodes={num_nodes}",
            f"{found.launcher} started {local} processes on each of {nodes} machines",
            f"Type trainer.devices={local} trainer.num_nodes={nodes}, or leave both out",
        )
    return devices if isinstance(devices, list) else local, nodes


def _refuse_unequal(found: Ranks) -> None:
    """Refuse machines with different numbers of ranks, such as a hostfile with 4 and 2 slots.

    Lightning and the strategies compute ranks and machines from the number on the own machine.
    """
    local, machines = found.num_local_ranks, os.environ.get(NUM_MACHINES.get(found.launcher, ""))
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "") if found.launcher == "srun" else ""  # "2(x3)", or "4,2"
    if found.num_ranks % local or (machines and int(machines) * local != found.num_ranks) or "," in tasks:
        asked = f"{found.launcher} with {found.num_ranks} processes, {tasks or local} on this machine"
        why = "the other machines have another number, and every machine must have the same"
        raise InputError(asked, why, "Give each machine the same number (slots in the hostfile, --nproc-per-node)")


def without_rank_flag(words: Sequence[str]) -> list[str]:
    """Remove ``--local_rank=N``, which the deepspeed launcher adds, from command-line words."""
    return [word for word in words if not word.startswith(("--local_rank=", "--local-rank="))]


@cache
def _store() -> "Store":
    """The store at the job's address. Cached: rank 0 may run its server, which the process group uses too."""
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"alignlab/{attempt}", store)


def agree(decide: Callable[[], Decision]) -> Decision:
    """Call a function on rank 0 and send its result to all ranks, before there is a process group.

    Args:
        decide: Called on rank 0 only.

    Returns:
        Result of ``decide``, pickled for the other ranks.

    Raises:
        Exception: The exception of ``decide``, on every rank.
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
    """Wait until another rank has set a key. This polls, because signals are delayed during the store's own wait."""
    while not _store().check([key]):
        time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[bool]:
    """Run the block on the first rank of each machine, then on the others, which find its files on the disk.

    Yields:
        Whether this rank is the first of its machine.
    """
    found = ranks()
    if found is None or found.num_local_ranks == 1:
        yield True
        return
    done = f"prepared/{found.node}"
    if found.local_rank > 0:
        _wait_for(done)
    try:
        yield found.local_rank == 0
    finally:
        if found.local_rank == 0:
            _store().set(done, "")


@contextlib.contextmanager
def first_error_only() -> Iterator[None]:
    """Raise the error of the rank that fails first; the other ranks, which fail because of it, exit silently."""
    try:
        yield
    except Exception as error:
        if ranks() is not None and not _is_first_to_fail():
            sys.exit(2 if isinstance(error, InputError) else 1)
        raise


def _is_first_to_fail() -> bool:
    try:
        return _store().add("failures", 1) == 1
    except RuntimeError:  # the store ended with rank 0, which may not have reported its error
        return True
