"""What a run depends on and does not own: rewards of others, and trackers."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from alignlab.models.locations import POCKET
from tests.faults.cases import Case
from tests.faults.promises import SAID, done, status, told
from tests.faults.runs import run
from tests.faults.servers import SERVERS, Answer, served

SECONDS = 90
GRPO = [
    "callbacks.exact_match=null",
    "method=grpo",
    "method.num_completions=2",
    "method.group_filter=keep",
    "method.reward_limits.timeout_seconds=2",
    "rollout.max_completion_tokens=16",
    "trainer.max_steps=4",
    "trainer.max_epochs=-1",
    "data.source.num_train=8",
    "data.source.num_validation=2",
    "data.global_batch_size=2",
    "data.cache_dir=cache",
    "run_dir=run",
]

PYTHON = {
    "raises": "raise ValueError('no')",
    "exits": "import os; os._exit(0)",
    "exits politely": "import sys; sys.exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "no answer": "return None",
    "a number": "return 1.0",
    "texts": "return ['a'] * len(completions)",
    "too few": "return [1.0]",
    "one more": "return [1.0] * (len(completions) + 1)",
    "huge": "return [10 ** 400] * len(completions)",
    "NaN": "return [float('nan')] * len(completions)",
    "objects": "return [Odd()] * len(completions)",
    "an odd object": "return Odd()",
    "endless": "return iter(lambda: 1.0, None)",
    "a class": "return Odd",
    "hangs": "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')",
    "sleeps": "import time; time.sleep(3600)",
    "segfaults": "import ctypes; ctypes.string_at(0)",
    "eats memory": "return [0.0] * 10 ** 14",
    "recurses": "return reward(completions)",
}
"""Bodies of a reward that never gives one usable number."""

SOMETIMES = {
    "raises now and then": "CALLS.append(1); assert len(CALLS) % 2 == 0\n    return [len(c) for c in completions]",
    "None for one": "return [None] + [float(len(c)) for c in completions[1:]]",
    "changes what it gets": "scores = [float(len(c)) for c in completions]; completions.clear(); return scores",
    "prints a lot": "print('x' * 100_000); return [float(len(c)) for c in completions]",
    "an array": "import numpy; return numpy.array([len(c) for c in completions])",
    "a generator": "return (float(len(c)) for c in completions)",
}
"""Bodies of a reward that a run can go on with."""

MODULE = """
CALLS = []

class Odd:
    def __float__(self): raise RuntimeError("never")
    def __len__(self): raise RuntimeError("never")
    def __iter__(self): raise RuntimeError("never")
    def __repr__(self): raise RuntimeError("never")

def reward(completions, prompts=None):
    BODY
"""


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """Every neighbour; one of each sort where it shall be quick."""
    found = [Case(f"server: {name}", partial(useless_server, answer)) for name, answer in SERVERS.items()]
    found += [Case("server: dead", partial(useless, "http://127.0.0.1:{port}/"))]
    found += [
        Case(f"url {url}", partial(useless, url))
        for url in ("nonsense", "http://", "ftp://x/y", "file:///etc/hostname", "http://no.such.host.invalid/")
    ]
    found += [Case("server: 500 now and then", useful_server)]
    found += [Case(f"python: {name}", partial(useless_python, body)) for name, body in PYTHON.items()]
    found += [Case(f"python: {name}", partial(useful_python, body)) for name, body in SOMETIMES.items()]
    found += [Case("pattern that backtracks", useless_pattern)]
    found += [
        Case("W&B refuses connections", partial(tracker, False)),
        Case("W&B never answers", partial(tracker, True)),
    ]
    quick = ("server: dead", "python: exits", "python: objects")
    return [case for case in found if case.name in quick] if small else found


def useless(url: str, folder: Path) -> None:
    """A reward behind HTTP that can never be had."""
    _never_works(folder, "method/reward=http", f"method.reward.http.url={url.format(port=_closed_port())}")


def useless_server(answer: Callable[[int, int], Answer], folder: Path) -> None:
    """A server whose answers are of no use."""
    with served(answer) as url:
        _never_works(
            folder, "method/reward=http", f"method.reward.http.url={url}", "method.reward.http.timeout_seconds=2"
        )


def useful_server(folder: Path) -> None:
    """A server that fails every second time is asked again."""

    def answer(count: int, number: int) -> Answer:
        return (200, json.dumps({"rewards": [float(i) for i in range(count)]}).encode()) if number % 2 else (500, b"")

    with served(answer) as url:
        done(
            run(folder, *GRPO, "logger=none", "method/reward=http", f"method.reward.http.url={url}", seconds=SECONDS),
            folder / "run",
        )


def useless_python(body: str, folder: Path) -> None:
    """A function that never gives a usable number."""
    _never_works(folder, *_function(folder, body))


def useful_python(body: str, folder: Path) -> None:
    """A function that a run can go on with."""
    done(run(folder, *GRPO, "logger=none", *_function(folder, body), seconds=SECONDS), folder / "run")


def useless_pattern(folder: Path) -> None:
    """A pattern that takes for ever on some completions does not hold the run up."""
    ended = run(
        folder,
        *GRPO,
        "logger=none",
        "method/reward=[length,pattern]",
        r"method.reward.pattern.pattern='^(.+)+\\$\\$$'",
        seconds=SECONDS,
    )
    assert ended.code in (0, 1), ended
    if ended.code:
        told(ended, 1)


def tracker(is_silent: bool, folder: Path) -> None:
    """W&B that cannot be reached: the run goes on offline, and says so."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1] if is_silent else _closed_port()
        words = [word for word in GRPO if not word.startswith(("method", "rollout"))]
        environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
        ended = run(folder, *words, "logger=wandb", "logger.wandb.mode=online", seconds=240, **environment)
    done(ended, folder / "run")
    assert "offline" in ended.output.lower(), "nothing said about going on offline"


def _never_works(folder: Path, *words: str) -> None:
    """The run stops in words, says failed, and has moved no weight."""
    began = time.monotonic()
    ended = run(folder, *GRPO, "logger=none", *words, seconds=SECONDS)
    told(ended, 1, 2)
    last = list(SAID.finditer(ended.output))[-1]
    said = ended.output[last.start() :]
    assert "python" in said or "http" in said, f"the reward is not named: {said[-300:]}"
    assert status(folder / "run") in ("failed", None), (
        f"status {status(folder / 'run')} after {time.monotonic() - began:.0f} s"
    )
    for exported in (folder / "run" / "model").glob("*.safetensors"):
        assert _equal(exported), "the weights moved without a reward"


def _equal(exported: Path) -> bool:
    ours, theirs = load_file(exported), load_file(POCKET / "model.safetensors")
    return all(ours[name].float().equal(theirs[name].float()) for name in ours if name in theirs)


def _function(folder: Path, body: str) -> list[str]:
    (folder / "mine.py").write_text(MODULE.replace("BODY", body))
    return ["method/reward=python", "method.reward.python.path=mine.py:reward"]


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
