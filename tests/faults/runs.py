"""Runs as a user starts them: in a process of their own, or, quicker, in a fork of this one."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple
from uuid import uuid4

from alignlab.cli.main import main
from tests.commands import REPOSITORY
from tests.distributed.launch.jobs import is_alive

MARK = "ALIGNLAB_FAULTS_RUN"
"""Environment variable by which every process of a run is known, however it was started."""

SECONDS_PER_RUN = 180

MOST_MEMORY = 8 * 2**30
"""Bytes that a forked run may fill: an attack that eats memory ends itself and not the machine."""


class Ended(NamedTuple):
    """A process that has ended.

    Args:
        code: Exit code; of one that a signal ended 128 + its number, as a shell says it.
        output: What it printed.
        seconds: From start to end.
    """

    code: int
    output: str
    seconds: float


class Run:
    """A run that was started, with all its processes.

    Args:
        pid: The first process, which leads a session.
        output: File without a name that takes what is printed, so that no folder is changed by it.
        poll: Exit code of the first process, None while it runs.
        mark: Value of ``MARK`` in the environment, empty for a fork.
    """

    def __init__(self, pid: int, output: BinaryIO, poll: Callable[[], int | None], mark: str = ""):
        self.pid, self.output, self.poll, self.mark = pid, output, poll, mark
        self.began = time.time()
        weakref.finalize(self, output.close)

    def processes(self) -> list[int]:
        """Living processes of the run, the first one included."""
        return [pid for pid in _pids() if is_alive(pid) and (_session(pid) == self.pid or self._is_marked(pid))]

    def kill(self, *, whole: bool) -> None:
        """SIGKILL to every process of the run, or only to the first one."""
        for pid in self.processes() if whole else [self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float = SECONDS_PER_RUN) -> Ended:
        """Wait for the first process; one that takes longer is killed, which fails the case."""
        limit = time.time() + seconds
        while (code := self.poll()) is None:
            if time.time() > limit:
                self.kill(whole=True)
                raise AssertionError(f"still running after {seconds:g} s; it printed: {self.text()[-600:]}")
            time.sleep(0.005)
        return Ended(code if code >= 0 else 128 - code, self.text(), time.time() - self.began)

    def wait_for_all(self, seconds: float) -> None:
        """Fail where a process of the run is alive after so long; it is killed then."""
        limit = time.time() + seconds
        while alive := self.processes():
            if time.time() > limit:
                shown = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:100] for pid in alive]
                self.kill(whole=True)
                raise AssertionError(f"alive {seconds:g} s after the run ended: {shown}")
            time.sleep(0.02)

    def text(self) -> str:
        """What was printed so far."""
        return _text(self.output)

    def _is_marked(self, pid: int) -> bool:
        try:
            return bool(self.mark) and self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


def start(folder: Path, *words: str, **environment: str) -> Run:
    """``train.py WORDS`` in a process of its own, in a folder."""
    mark, output = uuid4().hex, _nameless()
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, **environment, MARK: mark},
    )
    return Run(process.pid, output, process.poll, mark)


def fork(folder: Path, *words: str, root: Path | None = None, **environment: str) -> Run:
    """The same in a fork of this process, which needs no imports; with ``root`` that is all it sees of the disk."""
    output = _nameless()
    pid = os.fork()
    if pid == 0:
        _become(folder, output, words, environment, root)
    ended: list[int] = []

    def poll() -> int | None:
        if not ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(status)] if found else [])
        return ended[0] if ended else None

    return Run(pid, output, poll)


def run(
    folder: Path, *words: str, seconds: float = SECONDS_PER_RUN, root: Path | None = None, **environment: str
) -> Ended:
    """A forked run to its end, after which no process of it may be alive."""
    forked = fork(folder, *words, root=root, **environment)
    ended = forked.wait(seconds)
    forked.wait_for_all(5)
    return ended


def isolated(function: Callable[[], None], seconds: float = 30) -> None:
    """Call a function in a fork, so that neither a crash nor code that never returns ends the harness.

    Raises:
        AssertionError: It raised, died or took too long; with its last words.
    """
    output = _nameless()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__} ({Path(where.filename).name}:{where.lineno}): {str(error)[:600]}"
            os.write(output.fileno(), text.encode(errors="replace"))
        finally:
            os._exit(code)
    limit = time.time() + seconds
    while not (found := os.waitpid(pid, os.WNOHANG))[0]:
        if time.time() > limit:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"still busy after {seconds:g} s")
        time.sleep(0.002)
    with output:
        assert found[1] == 0, _text(output) or f"ended with status {found[1]}"


def _become(
    folder: Path, output: BinaryIO, words: tuple[str, ...], environment: Mapping[str, str], root: Path | None
) -> None:
    """The forked child: run the command, then leave without returning to the caller's code."""
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(environment)
        if root is not None:
            os.chroot(root)
        os.chdir(folder)
        sys.argv = ["train.py", *words]
        code = main(list(words) if words[:1] == ("train",) else ["train", *words])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(bool(left.code))
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _nameless() -> BinaryIO:
    return os.fdopen(os.memfd_create("output"), "w+b")


def _text(output: BinaryIO) -> str:
    return os.pread(output.fileno(), 10_000_000, 0).decode(errors="replace")


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _session(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return -1


def copy(folder: Path, to: Path) -> Path:
    """A copy of a folder with its links."""
    return shutil.copytree(folder, to, symlinks=True)
