"""A rank that dies, fails or is stopped takes the others with it, and the run goes on where it was."""

import os
import signal
import time

import pytest
from tests.commands import QUIET, summary
from tests.distributed.launch.jobs import is_alive, rank_pids, start_in, wait_for
from tests.test_resume import assert_same_run

STRATEGIES = ("ddp", "fsdp", "deepspeed_z2", "deepspeed_z3")
WORDS = [
    *QUIET,
    "trainer.devices=2",
    "trainer.max_steps=16",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=6",
    "checkpoint.every_n_steps=3",
    "data.source.num_train=20",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "data.batch_size_per_device=2",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def begun(cache, words, run):
    """A run of two ranks past its second checkpoint, and its ranks."""
    process = start_in(cache, *words, f"run_dir={run}")
    wait_for((run / "checkpoints" / "step-00000006").exists, process)
    ranks = rank_pids(process)
    assert len(ranks) == 2
    return process, ranks


def ended(process, ranks, seconds):
    """Exit code and output of a job that must end in time, with every rank."""
    began = time.monotonic()
    output, _ = process.communicate(timeout=seconds)
    assert time.monotonic() - began < seconds
    assert not any(map(is_alive, ranks)), output
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_rank_ends_the_job_and_resume_reaches_the_same_weights(tmp_path, cache, strategy):
    words = [*WORDS, f"strategy={strategy}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start_in(cache, *words, f"run_dir={whole}")
    assert process.communicate(timeout=300) and process.returncode == 0
    process, ranks = begun(cache, words, broken)
    os.kill(ranks[1], signal.SIGKILL)
    code, output = ended(process, ranks, seconds=20)
    assert code == 1 and output.count("Rank 1 of 2 was ended by SIGKILL") == 1, output
    assert "Traceback" not in output.replace((broken / "train.log").read_text(), "")
    process = start_in(cache, *words, f"run_dir={broken}", "resume=auto")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "Resuming" in output, output
    assert summary(broken)["steps"] == 16
    assert_same_run(whole, broken)


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_parent_stops_all_ranks_after_a_checkpoint(tmp_path, cache, how, code):
    process, ranks = begun(cache, [*WORDS, "strategy=ddp", "trainer.max_steps=1000"], tmp_path)
    process.send_signal(how)
    assert ended(process, ranks, seconds=20)[0] == code
    assert summary(tmp_path)["status"] == "stopped"
    last = int((tmp_path / "checkpoints" / "last").resolve().name.removeprefix("step-"))
    assert last == summary(tmp_path)["steps"] >= 6


@pytest.mark.parametrize(("error", "code", "said"), [
    pytest.param("ValueError", 1, "ValueError: only rank 1", marks=pytest.mark.slow),
    ("InputError", 2, "Refused. rank 1: it does not like it. Type something else."),
])  # fmt: skip
def test_an_error_of_one_rank_is_told_once(tmp_path, cache, monkeypatch, error, code, said):
    """The other rank waits in a collective meanwhile."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "failing.py").write_text(
        "import lightning\nfrom alignlab.errors import InputError\n"
        "ERRORS = {'ValueError': ValueError('only rank 1'),\n"
        "    'InputError': InputError('rank 1', 'it does not like it', 'Type something else')}\n"
        "class Failing(lightning.Callback):\n"
        "    def __init__(self, *, error):\n        self.error = error\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_rank == 1 and trainer.global_step == 2:\n"
        "            raise ERRORS[self.error]\n"
    )
    words = ["strategy=ddp", "callbacks.failing._target_=failing.Failing", f"callbacks.failing.error={error}"]
    process = start_in(cache, *WORDS, *words, f"run_dir={tmp_path / 'run'}")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert output.count(said) == 1, output
    assert ("Traceback" in output) == (code == 1)
