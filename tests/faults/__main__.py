"""``python -m tests.faults [KIND …]``: inject faults, print what breaks, count, and write the table of counts."""

import argparse
import importlib
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import tests.conftest  # noqa: F401  (the environment that tests run in, before any library reads it)
from tests.faults.cases import Case, Result, result_of
from tests.faults.table import summary_table, write_table

KINDS = (
    "attacks", "collisions", "damage", "disk", "kills", "neighbours", "numbers", "overrides", "rows", "signals",
)  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Run the kinds that are asked for; exit code 1 where any case failed."""
    asked = _arguments(words)
    import alignlab.run  # noqa: F401  (forks then have everything imported)

    results: list[Result] = []
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    for kind in asked.kinds:
        results += run_kind(kind, work / kind, asked.seed, asked.scale == "small", asked.jobs, asked.only)
        if asked.out:
            write_table(Path(asked.out), results, seed=asked.seed, scale=asked.scale)
    print("\n" + summary_table(results))
    failed = [result for result in results if result.verdict == "failed"]
    for result in failed:
        print(f"FAILED {result.kind}: {result.name}: {result.why}\n")
    if not failed:
        shutil.rmtree(work)
    return int(bool(failed))


def run_kind(kind: str, work: Path, seed: int, small: bool, jobs: int, only: str | None = None) -> list[Result]:
    """All cases of a kind, in several processes; a kind that cannot be prepared is one failed case."""
    print(f"--- {kind}", flush=True)
    work.mkdir(parents=True)
    began = time.monotonic()
    try:
        cases = importlib.import_module(f"tests.faults.{kind}").cases(work / "prepared", seed, small)
    except Exception:
        return [Result(kind, "preparation", 1, "failed", traceback.format_exc(), time.monotonic() - began)]
    cases = [case for case in cases if only is None or only in case.name]
    results = []
    for number, result in enumerate(spread(kind, cases, work, jobs), 1):
        results.append(result)
        if result.verdict != "passed" or len(cases) < 300:
            print(f"{kind} {number}/{len(cases)} {result.verdict} {result.seconds:.1f} s: {result.name} {result.why}")
        elif number % 100 == 0:
            print(f"{kind} {number}/{len(cases)}")
        sys.stdout.flush()
    return results


def spread(kind: str, cases: Sequence[Case], work: Path, jobs: int) -> Iterator[Result]:
    """Results as they come, from so many processes; a process that dies is a failed case of its own."""
    context = multiprocessing.get_context("fork")
    waiting, results = context.Queue(), context.Queue()
    for index in range(len(cases)):
        waiting.put(index)
    workers = [context.Process(target=_work, args=(kind, cases, work, waiting, results)) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    current: dict[int, int] = {}
    missing = set(range(len(cases)))
    while missing:
        try:
            pid, index, result = results.get(timeout=1)
        except queue.Empty:
            dead = {worker.pid: worker.exitcode for worker in workers if worker.exitcode}
            for pid in current.keys() & dead.keys():
                index = current.pop(pid)
                missing.discard(index)
                yield Result(kind, cases[index].name, 1, "failed", f"the harness died with {dead[pid]}", 0.0)
            if not any(worker.is_alive() for worker in workers) and results.empty():
                break
            continue
        current[pid] = index
        if result is not None:
            del current[pid]
            missing.discard(index)
            yield result
    for worker in workers:
        worker.join()
    for index in sorted(missing):
        yield Result(kind, cases[index].name, 1, "failed", "it was not reached: the harness died", 0.0)


def _work(kind: str, cases: Sequence[Case], work: Path, waiting, results) -> None:
    while True:
        try:
            index = waiting.get(timeout=0.2)
        except queue.Empty:
            return
        results.put((os.getpid(), index, None))
        results.put((os.getpid(), index, result_of(kind, cases[index], work / f"{index:04d}")))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other moments and mutations")
    parser.add_argument("--scale", choices=("small", "full"), default="full")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--only", help="only cases whose name holds this text")
    parser.add_argument("--out", help="Markdown file whose table of counts is replaced")
    asked = parser.parse_args(words)
    unknown = [kind for kind in asked.kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no such kind: {', '.join(unknown)}; the kinds are {', '.join(KINDS)}")
    asked.kinds = asked.kinds or list(KINDS)
    return asked


if __name__ == "__main__":
    sys.exit(main())
