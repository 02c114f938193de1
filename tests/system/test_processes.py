"""How the processes of a run end: with the one that started them, and on signals."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from alignlab.distributed import launch
from alignlab.system.processes import STOPPING, Stopped, leaving_on_signals

CHILDREN = {
    "a rank": "launch._reported, args=(folder, wait, folder)",
    "a worker that tokenises": "work, args=(folder,)",
}


@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path, child):
    script = f"""
        import multiprocessing, os, pathlib, time
        from alignlab.data.table import workers
        from alignlab.distributed import launch

        folder = pathlib.Path({str(tmp_path)!r})

        def wait(folder):
            (folder / "partial").write_text(str(os.getpid()))
            (folder / "partial").rename(folder / "pid")
            time.sleep(600)

        def work(folder):
            workers._start_worker(None, None)
            wait(folder)

        multiprocessing.get_context("fork").Process(target={child}).start()
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        wait_until((tmp_path / "pid").exists)
    finally:
        parent.kill()
        parent.wait()
    pid = int((tmp_path / "pid").read_text())
    try:
        wait_until(lambda: not is_alive(pid), seconds=10)
    finally:
        subprocess.run(["kill", "-KILL", str(pid)], check=False, stderr=subprocess.DEVNULL)


def test_a_rank_leaves_on_signals(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "end_with_parent", lambda: None)
    handlers = []
    launch._reported(tmp_path, lambda: handlers.extend(map(signal.getsignal, STOPPING)))
    assert not {signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler} & set(handlers)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_left_on_with_its_exit_code_and_handlers_are_put_back(signum, code):
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped, leaving_on_signals():
        signal.raise_signal(signum)
    assert stopped.value.code == code
    assert signal.getsignal(signum) == before


def wait_until(holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def is_alive(pid):
    """Whether a process runs; one that has ended may still be a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SCRIPT = """
import os
from alignlab.system.processes import leaving_on_signals
with leaving_on_signals(while_importing={importing}):
    try:
        os.kill(os.getpid(), {signum})
    finally:
        print("cleaned up", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("importing", [True, False])
def test_a_signal_raises_only_after_imports(signum, importing):
    """A C++ module that meets an exception while it is imported would end the process with SIGABRT."""
    script = SCRIPT.format(importing=importing, signum=int(signum))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signum
    assert done.stdout == ("" if importing else "cleaned up\n") and not done.stderr
