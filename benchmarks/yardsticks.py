"""Results of each method's default run on the embedded model with three seeds: the table in experiments/README.md.

    python benchmarks/yardsticks.py                # all methods, or name some: dpo grpo
    python benchmarks/yardsticks.py --seeds 1      # one seed only
    python benchmarks/yardsticks.py --again dpo    # drop finished runs of dpo and repeat them

Each run is ``python train.py method=METHOD seed=SEED`` in a separate process, one after the other, and is kept in
runs/yardsticks/; finished runs are not repeated. grpo/reward_model is GRPO with the reward model of the yardstick
reward_model, which is trained first. The exit code is 1 if a result is below its minimum. The seconds are those of the
whole command.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = REPOSITORY / "runs" / "yardsticks"
README = REPOSITORY / "experiments" / "README.md"
BEGIN, END = "<!-- yardsticks: written by benchmarks/yardsticks.py -->", "<!-- yardsticks: end -->"


@dataclass(frozen=True)
class Yardstick:
    """The expected result of a method.

    Args:
        least: Minimum of the final value.
        seconds: Maximum duration of the whole command, on two idle cores.
        metric: A column of metrics.csv that is measured on held-out problems.
        scorer: The yardstick whose run with the same seed is the reward model, instead of a rule.
        more: Further words of the command.
    """

    least: float
    seconds: int = 180
    metric: str = "val/exact_match"
    scorer: str | None = None
    more: tuple[str, ...] = ()


# A reward model may reward text unlike its training data, so the policy is kept close to the source of that data.
NEAR = ("optimizer.lr=1e-4", "trainer.max_steps=120")

YARDSTICKS = {  # METHOD, or METHOD/SCORER
    "sft": Yardstick(0.90, 120),
    "reward_model": Yardstick(0.90, metric="val/rewards/accuracies"),
    "dpo": Yardstick(0.80),
    "group_dpo": Yardstick(0.80),
    "simpo": Yardstick(0.80),
    "orpo": Yardstick(0.80),
    "cpo": Yardstick(0.80),
    "kto": Yardstick(0.80),
    "grpo": Yardstick(0.90),
    "rloo": Yardstick(0.85, 300),
    "ppo": Yardstick(0.85, 300),
    "grpo/reward_model": Yardstick(0.80, 300, scorer="reward_model", more=(*NEAR, "method.kl_coef=0.3")),
    "ppo/reward_model": Yardstick(0.80, 300, scorer="reward_model", more=(*NEAR, "method.reward_kl_coef=0.5")),
}


def folder_of(name: str, seed: int) -> Path:
    """Folder of the run of a yardstick."""
    return RUNS / f"{name.replace('/', '_by_')}-{seed}"


def words(name: str, scorer: str) -> list[str]:
    """Words of the command; ``scorer`` is the run of the reward model."""
    learned = ["method/reward=reward_model", f"method.reward.reward_model.path={scorer}"]
    yardstick = YARDSTICKS[name]
    return [f"method={name.partition('/')[0]}", *(learned if yardstick.scorer else []), *yardstick.more]


def run(name: str, seed: int, folder: Path) -> dict:
    """Return the summary of a run; train it, and its reward model, if it is not finished."""
    file, scorer = folder / "summary.json", YARDSTICKS[name].scorer
    if not file.exists() or json.loads(file.read_text())["status"] != "done":
        shutil.rmtree(folder, ignore_errors=True)
        if scorer:
            run(scorer, seed, folder_of(scorer, seed))
        typed = [*words(name, str(folder_of(scorer or name, seed))), f"seed={seed}", "logger=none", f"run_dir={folder}"]
        began = time.perf_counter()
        subprocess.run([sys.executable, str(REPOSITORY / "train.py"), *typed], check=True, stdout=subprocess.DEVNULL)
        (folder / "command_seconds").write_text(f"{time.perf_counter() - began:.0f}")
    return json.loads(file.read_text()) | {"command_seconds": int((folder / "command_seconds").read_text())}


def ends(name: str, summary: dict) -> tuple[float, float]:
    """The measured metric before and after training."""
    metric = YARDSTICKS[name].metric
    return summary["initial_metrics"][metric], summary["metrics"][metric]


def row(name: str, summaries: dict[int, dict]) -> str:
    """Format a line of the table."""
    yardstick = YARDSTICKS[name]
    seconds = max(summary["command_seconds"] for summary in summaries.values())
    start = ends(name, next(iter(summaries.values())))[0]
    after = " / ".join(f"{ends(name, summary)[1]:.3f}" for summary in summaries.values())
    cells = [f"`{' '.join(words(name, 'RUN'))}`", yardstick.metric, f"{start:.3f}", after]
    return f"| {' | '.join(cells)} | {yardstick.least:.2f} | {seconds} of {yardstick.seconds} |"


def table(done: dict[str, dict[int, dict]]) -> str:
    """Format the table of all finished runs."""
    seeds = sorted({seed for summaries in done.values() for seed in summaries})
    head = f"| typed | yardstick | before | after, seed {' / '.join(map(str, seeds))} | asked | seconds, slowest seed |"
    return "\n".join([head, "|---|---|---|---|---|---|", *(row(method, done[method]) for method in done)])


def finished(seeds: range = range(100)) -> dict[str, dict[int, dict]]:
    """Summaries of the finished runs, by name and seed."""
    found: dict[str, dict[int, dict]] = {}
    for name in YARDSTICKS:
        for seed in seeds:
            if (folder_of(name, seed) / "command_seconds").exists():
                found.setdefault(name, {})[seed] = run(name, seed, folder_of(name, seed))
    return found


def write(done: dict[str, dict[int, dict]]) -> None:
    """Put the table into experiments/README.md."""
    head, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{head}{BEGIN}\n{table(done)}\n{END}{rest.partition(END)[2]}")


def main() -> int:
    """Run what is missing, write the table, and report results below their minimum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="METHOD", help=f"of {', '.join(YARDSTICKS)}; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--again", action="store_true", help="repeat finished runs too")
    arguments = parser.parse_args()
    short = 0
    for name, seed in product(arguments.names or YARDSTICKS, arguments.seeds):
        folder = folder_of(name, seed)
        if arguments.again:
            shutil.rmtree(folder, ignore_errors=True)
        summary = run(name, seed, folder)
        start, end = ends(name, summary)
        verdict = "" if end >= YARDSTICKS[name].least else f", below {YARDSTICKS[name].least}"
        short += bool(verdict)
        print(f"{name} seed {seed}: {start:.3f} → {end:.3f}, {summary['command_seconds']} s{verdict}", flush=True)
        write(finished())
    return int(short > 0)


if __name__ == "__main__":
    sys.exit(main())
