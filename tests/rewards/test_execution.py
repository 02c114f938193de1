"""Rewards in a process of their own: they can hang, exit or be killed, and neither the run nor another reward minds."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from alignlab.errors import InputError
from alignlab.rewards import execution
from alignlab.rewards.exact_answer import ExactAnswer
from alignlab.rewards.execution import InProcess, InThread, make_executor
from alignlab.rewards.external import PythonReward
from alignlab.rewards.math_equal import MathEqual
from alignlab.rewards.scorer import Limits, Scorer
from alignlab.rewards.text import Pattern

REWARDS = """
import os, re, signal, subprocess, sys, time

calls = []

def count(completions):
    calls.append(1)
    return [len(calls)] * len(completions)

def where(completions):
    return [os.getpid()] * len(completions)

def holds_the_interpreter(completions):
    re.fullmatch("(a+)+b", "a" * 60)

def hangs_at_first(completions, folder):
    if os.path.exists(f"{folder[0]}/pid"):
        return [1.0] * len(completions)
    with open(f"{folder[0]}/pid", "w") as file:
        file.write(str(os.getpid()))
    re.fullmatch("(a+)+b", "a" * 60)

def sleeps_with_a_child(completions, folder):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(f"{folder[0]}/pids", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(f"{folder[0]}/pids", f"{folder[0]}/ready")
    re.fullmatch("(a+)+b", "a" * 60)

def exits(completions):
    os._exit(0)

def breaks(completions):
    os.kill(os.getpid(), signal.SIGSEGV)

def closes(completions):
    os.closerange(3, 100)
    time.sleep(600)

def quits(completions):
    sys.exit(0)

def on_signals(completions):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return [1.0] * len(completions)

def prints(completions):
    print("to one")
    print("to the other", file=sys.stderr)
    return [0.0] * len(completions)

class Factor:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, completions, prompts, **columns):
        self.factor += 1
        return [self.factor] * len(completions)

class Stays(Factor):
    own_process = False

class Moves(Factor):
    def to(self, device):
        pass

class Fragile(Factor):
    def __setstate__(self, state):
        raise RuntimeError("not here")
"""
LIMITS = {"num_retries": 0, "default": None, "max_failed_rollouts": 3}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The module of rewards above, as one of another package."""
    (tmp_path / "of_others.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "of_others", raising=False)
    import of_others

    return of_others


@pytest.fixture
def scorer(mine):
    """``scorer(seconds, name=reward, …)``, or names of functions as ``python`` rewards; processes end with the test."""
    made = []

    def make(seconds=30, **rewards):
        rewards = {
            name: PythonReward(path=f"{mine.__file__}:{reward}") if isinstance(reward, str) else reward
            for name, reward in rewards.items()
        }
        made.append(Scorer(rewards, None, Limits(timeout_seconds=seconds, **LIMITS)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def call(scorer, texts=("a", "b"), **columns):
    return scorer(list(texts), [[]] * len(texts), columns)


def test_state_is_kept_between_calls_in_a_process_that_is_not_ours(scorer, mine):
    made = scorer(counts="count", where="where", factor=mine.Factor(5))
    first, second = call(made), call(made)
    assert (first.by_name["counts"], second.by_name["counts"]) == ([1, 1], [2, 2])
    assert (first.by_name["factor"], second.by_name["factor"]) == ([6, 6], [7, 7])
    assert first.by_name["where"] == second.by_name["where"] != [os.getpid()] * 2
    assert not mine.calls


@pytest.mark.parametrize(
    ("name", "failure", "told"),
    [
        ("exits", "died", "its process ended with exit code 0"),
        ("breaks", "died", "its process ended by SIGSEGV"),
        ("closes", "died", "its process ended by SIGKILL"),
        ("quits", "failed", "SystemExit: 0"),
        ("holds_the_interpreter", "timed_out", "no answer within 0.5 s"),
    ],
)
def test_one_that_ends_or_hangs_fails_and_is_started_anew(scorer, name, failure, told, caplog):
    made = scorer(0.5 if failure == "timed_out" else 30, bad=name, good=ExactAnswer(column="answer"))
    for _ in range(2):
        started = time.monotonic()
        scores = call(made, answer=["a", "c"])
        assert time.monotonic() - started < 10
        assert scores.failures == {"bad": {failure: 2}}
        assert scores.total == [1.0, 0.0]
    assert told in caplog.text


def test_one_that_hung_is_stopped_and_answers_the_next_call(scorer, tmp_path):
    made, folder = scorer(2, late="hangs_at_first"), [str(tmp_path)] * 2
    assert call(made, folder=folder).failures == {"late": {"timed_out": 2}}
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert call(made, folder=folder).by_name == {"late": [1.0, 1.0]}


def test_what_it_prints_is_printed_by_the_run(scorer, capsys):
    call(scorer(talks="prints"))
    printed = []
    wait_for(lambda: printed.append(capsys.readouterr().out) or ("other" in "".join(printed)) or None)
    assert "".join(printed) == "to one\nto the other\n"


def test_signals_to_it_are_the_run_s_own_business(scorer):
    assert call(scorer(odd="on_signals")).by_name["odd"] == [1.0, 1.0]


def test_a_pattern_that_takes_too_long_for_one_text_is_told_for_that_text_alone(scorer):
    made = scorer(odd=Pattern(pattern="(a+)+b", whole=True))
    scores = call(made, ["aab", "a" * 60, "c"])
    assert scores.failures == {"odd": {"not_finite": 1}} and scores.by_name["odd"][::2] == [1.0, 0.0]


def test_math_runs_apart_too(scorer):
    made = scorer(math=MathEqual(column="answer"))
    assert isinstance(made.executors["math"], InProcess)
    assert call(made, ["<answer>1/2</answer>", "2"], answer=["0.5", "3"]).by_name["math"] == [1.0, 0.0]


def test_who_moves_and_who_stays(mine, monkeypatch):
    """A process is for what may hang and can be sent there; what computes on the run's device stays."""
    monkeypatch.setattr(InProcess, "make_ready", lambda self: "")
    stays = [ExactAnswer(column="a"), mine.Stays(1), mine.Moves(1), lambda completions, prompts: [], os.times().__add__]
    moves = [Pattern(pattern="a", whole=False), mine.Factor(1), mine.count, functools.partial(mine.where)]
    assert [type(make_executor("mine", reward)) for reward in stays[:4]] == [InThread] * 4
    assert [type(make_executor("mine", reward)) for reward in moves] == [InProcess] * 4


def test_what_cannot_be_unpickled_there_stays_and_says_so(mine, caplog):
    assert isinstance(make_executor("mine", mine.Fragile(1)), InThread)
    assert "RuntimeError: not here" in caplog.text


@pytest.mark.parametrize(
    ("source", "why"),
    [("import os; os._exit(0)", "ended with exit code 0"), ("", "no such callable"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_file_that_cannot_be_loaded_is_refused_before_training(tmp_path, source, why):
    (tmp_path / "mine.py").write_text(source)
    with pytest.raises(InputError, match=why):
        make_executor("python", PythonReward(path=f"{tmp_path}/mine.py:score"))


def test_a_process_that_cannot_start_is_told(monkeypatch):
    monkeypatch.setattr(execution, "_start", functools.partial(_raise, OSError("no memory")))
    with pytest.raises(InputError, match=r"cannot be started \(no memory\)"):
        make_executor("pattern", Pattern(pattern="a", whole=False))


def _raise(error, *_):
    raise error


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_run(tmp_path, mine, how):
    """The reward holds its interpreter and has started a child of its own; the run is killed, or ends by itself."""
    script = f'''
        import sys
        from alignlab.rewards.external import PythonReward
        from alignlab.rewards.scorer import Limits, Scorer
        from alignlab.system.processes import leaving_on_signals
        with leaving_on_signals():
            limits = Limits(timeout_seconds=600, num_retries=0, default=None, max_failed_rollouts=3)
            scorer = Scorer({{"odd": PythonReward(path="{mine.__file__}:sleeps_with_a_child")}}, None, limits)
            scorer(["a"], [[]], {{"folder": ["{tmp_path}"]}})
    '''
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    pids = [int(pid) for pid in wait_for(lambda: (tmp_path / "ready").read_text().split())]
    os.killpg(run.pid, how)
    assert run.communicate(timeout=30)[1] == ""
    assert run.returncode in (-how, 128 + how)
    wait_for(lambda: not [pid for pid in pids if is_alive(pid)] or None)


def wait_for(look, seconds=30):
    """What ``look`` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if (found := look()) is not None:
                return found
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not come")


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
