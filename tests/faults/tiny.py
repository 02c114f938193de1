"""Runs of a few seconds that have everything a run can have: several epochs, checkpoints, validations, samples."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.commands import QUIET
from tests.faults.phases import Moment, reach
from tests.faults.promises import done
from tests.faults.runs import Run, fork, start

COMMON = [
    *QUIET,
    "trainer.max_steps=12",
    "trainer.max_epochs=-1",
    "trainer.val_check_interval=5",
    "checkpoint.every_n_steps=2",
    "data.source.num_train=40",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "data.batch_size_per_device=3",
    "data.cache_dir=cache",
    "run_dir=run",
]
METHODS = {
    "sft": ["method=sft", "method.neftune_alpha=5"],
    "dpo": ["method=dpo", "method.reference=ema"],
    # A rollout lasts eight steps, so every checkpoint up to the sixth stands within one.
    "grpo": [
        "method=grpo",
        "method.num_completions=4",
        "method.steps_per_rollout=4",
        "method.num_iterations=2",
        "method.group_filter=keep",
        "rollout.max_completion_tokens=64",
    ],
}
STRATEGIES = {
    "single": [],
    **{name: [f"strategy={name}", "trainer.devices=2"] for name in ("ddp", "fsdp", "deepspeed_z2")},
}


def words(method: str, strategy: str = "single") -> list[str]:
    """The command line of a tiny run in the folder ``run``."""
    return [*COMMON, *METHODS[method], *STRATEGIES[strategy]]


def begin(folder: Path, *line: str, forked: bool) -> Run:
    """Start one, as a process of its own or as a fork."""
    return (fork if forked else start)(folder, *line)


def undisturbed(work: Path, wanted: list[tuple[str, str]], *, forked: bool) -> dict[tuple[str, str], Path]:
    """Run methods under strategies to their end, two at a time; the run folder of each."""

    def finish(pair: tuple[str, str]) -> Path:
        folder = work / "-".join(pair)
        folder.mkdir(parents=True)
        run = folder / "run"
        done(begin(folder, *words(*pair), forked=forked).wait(600), run)
        return run

    with ThreadPoolExecutor(1 if forked else 2) as pool:
        return dict(zip(wanted, pool.map(finish, wanted), strict=True))


def stopped(home: Path, method: str) -> Path:
    """A run that was killed on its way, with checkpoints in its folder and the cache beside it."""
    home.mkdir(parents=True)
    run = begin(home, *words(method), "resume=auto", forked=True)
    assert reach(Moment("checkpoint", 1.0, nth=4), run, home), "it ended before it could be stopped"
    run.kill(whole=True)
    run.wait(5)
    return home / "run"
