"""Which ranks are there, by the variables of each launcher, and what is refused."""

import pytest

from alignlab.distributed import launch, ranks
from alignlab.distributed.ranks import LAUNCHERS, Ranks, find_ranks, settle, without_rank_flag
from alignlab.errors import InputError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
DEEPSPEED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "0"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NNODES": "2"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "ENVIRONMENT": "BATCH"}
SUBMITIT = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_LOCALID": "1"}


@pytest.fixture
def environment(monkeypatch):
    for name in {name for names in LAUNCHERS.values() for name in names} | {"ENVIRONMENT", "SLURM_STEP_ID"}:
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (TORCHRUN, Ranks("torchrun", 3, 4, 1, 2, 1)),
        (DEEPSPEED, Ranks("deepspeed", 1, 2, 1, 2, 0)),
        (SRUN, Ranks("srun", 3, 4, 1, 2, 1)),
        (SRUN | {"SLURM_NTASKS_PER_NODE": "2"}, Ranks("srun", 3, 4, 1, 2, 1)),
        (SRUN | TORCHRUN, Ranks("torchrun", 3, 4, 1, 2, 1)),
        (BATCH, None),
        (BATCH | {"SLURM_STEP_ID": "0"}, Ranks("srun", 0, 4, 0, 4, 0)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        (SUBMITIT, Ranks("submitit", 1, 2, 1, 2, 0)),
    ],
)
def test_ranks_are_found(environment, monkeypatch, variables, expected):
    monkeypatch.setenv("SLURM_NNODES", "1")
    environment(variables)
    assert find_ranks() == expected


@pytest.mark.parametrize(
    ("typed", "settled"), [((1, 1), (2, 2)), (("auto", 1), (2, 2)), ((2, 2), (2, 2)), (([0, 3], 1), ([0, 3], 2))]
)
def test_devices_are_those_of_the_ranks(monkeypatch, typed, settled):
    monkeypatch.setattr(ranks, "ranks", lambda: Ranks("srun", 0, 4, 0, 2, 0))
    assert settle(*typed) == settled


@pytest.mark.parametrize("typed", [(4, 1), (2, 3), ([0], 1)])
def test_another_number_than_that_of_the_ranks_is_refused(monkeypatch, typed):
    monkeypatch.setattr(ranks, "ranks", lambda: Ranks("srun", 0, 4, 0, 2, 0))
    with pytest.raises(InputError, match="srun started 2 processes on each of 2 machines"):
        settle(*typed)


@pytest.mark.parametrize(
    ("found", "variables"),
    [
        (Ranks("deepspeed", 0, 6, 0, 4, 0), {"CROSS_SIZE": "2"}),
        (Ranks("deepspeed", 4, 6, 0, 2, 1), {"CROSS_SIZE": "2"}),
        (Ranks("torchrun", 0, 12, 0, 4, 0), {"GROUP_WORLD_SIZE": "4"}),
        (Ranks("srun", 0, 6, 0, 3, 0), {"SLURM_STEP_TASKS_PER_NODE": "4,2"}),
        (Ranks("srun", 0, 6, 0, 4, 0), {}),
    ],
)
def test_machines_with_different_numbers_of_ranks_are_refused(environment, monkeypatch, found, variables):
    environment(variables)
    monkeypatch.setattr(ranks, "ranks", lambda: found)
    with pytest.raises(InputError, match="every machine must have the same"):
        settle(1, 1)


@pytest.mark.parametrize("variables", [{"CROSS_SIZE": "2"}, {"SLURM_STEP_TASKS_PER_NODE": "4,2"}])
def test_machines_with_the_same_number_are_not(environment, monkeypatch, variables):
    environment(variables)
    monkeypatch.setattr(ranks, "ranks", lambda: Ranks("deepspeed", 0, 4, 0, 2, 0))
    assert settle(1, 1) == (2, 2)


def test_without_ranks_nothing_is_settled():
    assert settle(3, 2) == (3, 2)


def test_the_flag_of_the_deepspeed_launcher_is_dropped():
    assert without_rank_flag(["--local_rank=1", "-m", "seed=1"]) == ["-m", "seed=1"]


def test_other_machines_are_refused_with_the_command_to_type():
    with pytest.raises(InputError, match="torchrun --nnodes 3 --nproc-per-node 8"):
        launch.refuse_other_machines(3, 8)
    launch.refuse_other_machines(1, 8)
