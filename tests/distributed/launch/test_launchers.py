"""Every way to start ranks leaves one run folder per job, made by rank 0."""

import csv
import sys

import pytest
from tests.commands import metrics
from tests.distributed.launch.jobs import TINY, TRAIN, assert_one_job, module, outputs, runs, spawn


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}


@pytest.mark.slow
def test_torchrun_with_two_rendezvous_agents(tmp_path, cache, free_port):
    """As on two machines: each agent starts one rank."""
    words = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port}"]
    command = module("torch.distributed.run", *words, "--rdzv-id=test", TRAIN, *TINY)
    texts = outputs(*(spawn(command, tmp_path, **cache) for _ in range(2)))
    run = assert_one_job(tmp_path)
    assert sum("before training" in text for text in texts) == 1, "one rank speaks"
    assert "tokenising" in (run / "train.log").read_text()
    assert "tokenising" not in (run / "train-rank1.log").read_text(), "one rank makes the cache"
    assert "num_nodes: 2" in (run / "config.yaml").read_text()
    assert [row["progress/step"] for row in metrics(run)] == [1, 2, 3, 4]


@pytest.mark.slow
def test_deepspeed_launcher_with_a_one_line_hostfile(tmp_path, cache, free_port):
    (tmp_path / "hostfile").write_text("localhost slots=2\n")
    hosts = ["--hostfile", str(tmp_path / "hostfile"), "--no_ssh_check"]
    here = ["--master_addr", "127.0.0.1", "--master_port", str(free_port)]
    outputs(spawn(module("deepspeed.launcher.runner", *hosts, *here, TRAIN, *TINY), tmp_path, **cache))
    assert "devices: 2" in (assert_one_job(tmp_path) / "config.yaml").read_text()


def test_srun(tmp_path, cache):
    """Tasks with the variables that srun gives them; which port is free follows from the job's number."""
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "71", "SLURM_JOB_NODELIST": "localhost", "SLURM_STEP_ID": "0"}
    place = lambda rank: {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}  # noqa: E731
    outputs(*(spawn([sys.executable, TRAIN, *TINY], tmp_path, **cache, **job, **place(rank)) for rank in range(2)))
    assert_one_job(tmp_path)


@pytest.mark.slow
def test_submitit(tmp_path, cache):
    """What launcher=slurm submits, by submitit's executor for this machine: one task per rank."""
    words = [*TINY, "launcher=submitit_local", "trainer.devices=2"]
    (text,) = outputs(spawn([sys.executable, TRAIN, *words], tmp_path, **cache))
    run = assert_one_job(tmp_path)
    (table,) = (tmp_path / "runs" / "sweeps").glob("*/sweep.csv")
    assert str(table.relative_to(tmp_path)) in text
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert (row["status"], tmp_path / row["run"]) == ("done", run)


@pytest.mark.slow
def test_a_sweep_of_two_processes_each_goes_on_after_failures_and_skips_what_is_done(tmp_path, cache):
    """Two jobs are refused and two done; the same again starts nothing."""
    words = [*TINY, "-m", "trainer.devices=2", "seed=1,2", "optimizer.lr=1e-3,-1", "run_dir=all"]
    process = spawn([sys.executable, TRAIN, *words], tmp_path, **cache)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 2, output
    rows = {row["overrides"]: row for row in csv.DictReader((tmp_path / "all" / "sweep.csv").read_text().splitlines())}
    assert [row["status"] for row in rows.values()] == ["done", "refused", "done", "refused"]
    done = rows["seed=1 optimizer.lr=0.001"]
    assert done["run"].startswith("all/0-") and float(done["val/loss"]) > 0 and done["steps"] == "4"
    assert sorted(path.parent.name[0] for path in (tmp_path / "all").glob("*/summary.json")) == ["0", "2"]
    process = spawn([sys.executable, TRAIN, *words], tmp_path, **cache)
    again = process.communicate(timeout=300)[0]
    assert process.returncode == 2 and again.count("done before, all/") == 2, again
    assert runs(tmp_path) == [] and len(list((tmp_path / "all").glob("*/summary.json"))) == 2
