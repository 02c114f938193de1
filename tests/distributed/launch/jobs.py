"""Jobs of two processes, started by real launchers, and what they leave behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.commands import QUIET, REPOSITORY, start

TINY = [
    *QUIET,
    "trainer.max_steps=4",
    "data.source.num_train=40",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "strategy=ddp",
]
TRAIN = str(REPOSITORY / "train.py")


def spawn(command: list, folder: Path, **environment: str) -> subprocess.Popen:
    """A command in a folder of its own, output and errors together to be read."""
    return subprocess.Popen(
        list(map(str, command)),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def module(name: str, *words: str) -> list:
    """A command that runs a module of the environment's packages."""
    return [sys.executable, "-m", name, *words]


def outputs(*processes: subprocess.Popen) -> list[str]:
    """What the processes printed, once all have ended well."""
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(texts)
    return texts


def runs(folder: Path) -> list[Path]:
    """Run folders that were made in a folder."""
    return sorted(path.parent for path in (folder / "runs").glob("*/*/config.yaml"))


def assert_one_job(folder: Path, num_ranks: int = 2) -> Path:
    """One run folder, with the log of rank 0, a log of its own for each other rank, and a finished run."""
    (run,) = runs(folder)
    others = [f"train-rank{rank}.log" for rank in range(1, num_ranks)]
    assert sorted(path.name for path in run.glob("*.log")) == [*others, "train.log"]
    assert '"status": "done"' in (run / "summary.json").read_text()
    assert (run / "model" / "model.safetensors").is_file()
    return run


def start_in(folder: Path, *words: str) -> subprocess.Popen:
    """Our own command, with the data cache in a folder."""
    return start(*words, XDG_CACHE_HOME=str(folder / "cache"))


def rank_pids(parent: subprocess.Popen) -> list[int]:
    """Processes of the ranks that a parent has started, rank 0 first."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent_pid = int(status.read_text().rpartition(")")[2].split()[1])
            command = status.with_name("cmdline").read_text()
        except OSError:
            continue
        if parent_pid == parent.pid and "spawn_main" in command:
            found.append(int(status.parent.name))
    return sorted(found)


def wait_for(condition, process: subprocess.Popen) -> None:
    """Wait while a process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
