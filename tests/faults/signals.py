"""SIGTERM and SIGINT, once and twice, at random moments: the documented exit codes, and a run that can go on."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

from tests.faults.cases import Case
from tests.faults.phases import LONGEST, Moment, draw, reach
from tests.faults.promises import done, no_left_overs, status
from tests.faults.runs import Run
from tests.faults.tiny import begin, undisturbed, words
from tests.test_resume import weights

SECONDS_TO_LEAVE = 60
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
SEQUENCES = (
    (signal.SIGTERM,),
    (signal.SIGINT,),
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGTERM, signal.SIGINT),
    (signal.SIGINT, signal.SIGTERM),
)


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """Every sequence in every phase of an SFT run, some under GRPO and DDP; processes of their own unless quick."""
    methods = [("sft", "single")] if small else [("sft", "single"), ("grpo", "single"), ("sft", "ddp")]
    whole = undisturbed(work, methods, forked=small)
    if small:
        moments = [("sft", "single", Moment("training", 0.3, 1), 0), ("sft", "single", Moment("export", 0.1, 1), 1)]
    else:
        chance = random.Random(seed)
        moments = [
            ("sft", "single", Moment(phase, chance.random(), 1), number)
            for phase in LONGEST
            for number in range(len(SEQUENCES))
        ]
        moments += [
            (*pair, draw(chance, forked=False), number) for pair in methods[1:] for number in range(len(SEQUENCES))
        ]
    return [
        Case(f"{method} {strategy} {moment} {_shown(SEQUENCES[number])}", partial(
            stopped, whole[method, strategy], method, strategy, moment, SEQUENCES[number], small, f"{seed} {moment}"
        ))
        for method, strategy, moment, number in moments
    ]  # fmt: skip


def stopped(
    whole: Path,
    method: str,
    strategy: str,
    moment: Moment,
    sequence: tuple[int, ...],
    forked: bool,
    seed: str,
    folder: Path,
) -> None:
    """Signal a run, look how it leaves, and let it go on to the weights of the undisturbed one."""
    line = [*words(method, strategy), "resume=auto"]
    running = begin(folder, *line, forked=forked)
    if reach(moment, running, folder):
        _send(running, sequence, random.Random(seed))
        ended = running.wait(SECONDS_TO_LEAVE)
        running.wait_for_all(10)
        expected = {CODES[each] for each in sequence}
        is_whole = ended.code == 0 and status(folder / "run") == "done"
        assert ended.code in expected or is_whole, f"exit code {ended.code}, not {expected}: {ended.output[-600:]}"
        if moment.phase != "start-up":
            assert "Traceback (most recent call last)" not in ended.output, f"a traceback: {ended.output[-600:]}"
        if not is_whole:
            assert status(folder / "run") != "done", "it was stopped, and says done"
    done(begin(folder, *line, forked=forked).wait(), folder / "run")
    ours, theirs = weights(folder / "run"), weights(whole)
    assert all(ours[name].equal(theirs[name]) for name in theirs), "other weights"
    no_left_overs(folder)


def _send(running: Run, sequence: tuple[int, ...], chance: random.Random) -> None:
    """To the first process; Ctrl-C as a terminal sends it, to all, now and then."""
    for number, each in enumerate(sequence):
        if number:
            time.sleep(chance.choice((0.0, 0.1, 0.5)))
        to_all = each == signal.SIGINT and chance.random() < 0.5
        for pid in running.processes() if to_all else [running.pid]:
            try:
                os.kill(pid, each)
            except ProcessLookupError:
                continue


def _shown(sequence: tuple[int, ...]) -> str:
    return "+".join(signal.Signals(each).name for each in sequence)
