"""SIGKILL at random moments, then ``resume=auto`` until done: the run is the one that was never killed."""

import itertools
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.faults.cases import Case
from tests.faults.phases import LONGEST, draw, reach
from tests.faults.promises import done, no_left_overs, same_run
from tests.faults.tiny import METHODS, STRATEGIES, begin, undisturbed, words

SECONDS_TO_FOLLOW = 30
"""Between the death of the parent and that of all processes which it had started."""

KILLS_PER_CHAIN = {"single": 4, "ddp": 2, "fsdp": 2, "deepspeed_z2": 2}
CHAINS = {"single": 6, "ddp": 1, "fsdp": 1, "deepspeed_z2": 1}
"""Per method: 24 kills under single, and 6 under each other strategy over the three methods."""


def cases(work: Path, seed: int, small: bool) -> list[Case]:
    """A chain of kills each; they begin in one phase after the other, so that all are met."""
    if small:
        whole = undisturbed(work, [("sft", "single")], forked=True)
        phases = ("tokenising", "export")
        return [Case("sft single 0", partial(chain, whole, "sft", "single", f"{seed} 0", phases, 2, True))]
    pairs = [(method, strategy) for strategy in STRATEGIES for method in METHODS]
    whole = undisturbed(work, pairs, forked=False)
    plan = [(*pair, number) for pair in pairs for number in range(CHAINS[pair[1]])]
    return [
        Case(
            name, partial(chain, whole, method, strategy, f"{seed} {name}", (first,), KILLS_PER_CHAIN[strategy], False)
        )
        for (method, strategy, number), first in zip(plan, itertools.cycle(LONGEST))
        for name in [f"{method} {strategy} {number}"]
    ]


def chain(
    whole: dict,
    method: str,
    strategy: str,
    seed: str,
    phases: Sequence[str],
    num_kills: int,
    forked: bool,
    folder: Path,
) -> int:
    """Kill a run so many times, each time going on, then let it end; the number of kills.

    A run that ends before its moment is begun anew in another folder, so that all kills take place.

    Args:
        whole: Undisturbed runs by method and strategy.
        method: Of the run.
        strategy: Of the run.
        seed: Of the moments.
        phases: Of the first kills; those of the others are drawn.
        num_kills: How many.
        forked: Whether the run is a fork of this process.
        folder: Empty.
    """
    chance, kills, number = random.Random(seed), 0, 0
    history: list[str] = []
    while True:
        home = folder / str(number)
        home.mkdir(exist_ok=True)
        run = begin(home, *words(method, strategy), "resume=auto", forked=forked)
        moment, only_parent = draw(chance, forked=forked), chance.random() < 0.5
        if kills < len(phases):
            moment = moment._replace(phase=phases[kills])
        try:
            if kills < num_kills and reach(moment, run, home):
                run.kill(whole=not only_parent)
                run.wait(10)
                run.wait_for_all(SECONDS_TO_FOLLOW)
                kills += 1
                history.append(f"{moment} {'parent' if only_parent else 'all'}")
                continue
            done(run.wait(), home / "run")
            run.wait_for_all(5)
            same_run(whole[method, strategy], home / "run")
            no_left_overs(home)
        except AssertionError as error:
            raise AssertionError(f"after kills at {history}, in {home}: {error}") from error
        if kills >= num_kills:
            return kills
        number += 1
        history = []
