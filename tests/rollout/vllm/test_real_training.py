"""Runs that sample from the real engine, on a CPU: ``make test-vllm``. Each starts a server of its own."""

import os
import signal

import pytest

from alignlab.rollout.vllm.rollout import VLLMRollout
from alignlab.rollout.vllm.server import ServerError
from tests.commands import alignlab, metrics, summary
from tests.rollout.vllm.test_real_engine import PYTHON
from tests.rollout.vllm.test_training import LORA, QUIET, SHORT

pytestmark = pytest.mark.vllm


@pytest.fixture
def servers(monkeypatch):
    """Processes of the servers that were started; the first is killed before the second update where asked."""
    if not os.access(PYTHON, os.X_OK):
        pytest.skip(f"no vLLM environment: {PYTHON}")
    seen, update = Servers(), VLLMRollout.update

    def watched(self, *given):
        process = self.engine.servers[0].process
        seen.processes[process.pid] = process
        seen.num_updates += 1
        if seen.num_updates == seen.kill_before:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return update(self, *given)

    monkeypatch.setattr(VLLMRollout, "update", watched)
    yield seen
    assert all(process.poll() is not None for process in seen.processes.values()), "a server outlived its run"


class Servers:
    def __init__(self):
        self.processes, self.num_updates, self.kill_before = {}, 0, None


def train(run, *more):
    given = [f"rollout.vllm_executable={PYTHON}", "rollout.dtype=float32", "rollout.timeout_seconds=600"]
    given.append(f"data.cache_dir={run.parent / 'cache'}")
    return alignlab("train", *QUIET, *SHORT, *given, "method=grpo", *more, f"run_dir={run}")


@pytest.mark.parametrize("more", [[], LORA, ["peft=qlora"]], ids=["full", "lora", "qlora"])
def test_three_updates_arrive(more, tmp_path, servers):
    assert train(tmp_path / "run", *more) == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3
    assert all(row["rollout/parity_mean_difference"] < 1e-5 for row in rows)
    assert all(row["rollout/arrival_difference"] < 1e-5 for row in rows)


def test_a_killed_server_returns_and_the_run_goes_on(tmp_path, servers):
    servers.kill_before = 2
    assert train(tmp_path / "run", "rollout.num_restarts=1") == 0
    assert all(row["rollout/parity_mean_difference"] < 1e-5 for row in metrics(tmp_path / "run"))


def test_a_server_killed_for_good_ends_the_run(tmp_path, servers):
    servers.kill_before = 2
    with pytest.raises(ServerError, match=r"ended with exit code -9; the last lines of .*run/vllm_0\.log"):
        train(tmp_path / "run", "rollout.num_restarts=0")
    assert summary(tmp_path / "run")["status"] == "failed"
