"""Run the jobs of a sweep, several at a time, and write a table of results. A failed job does not end the others.

Hydra composes the jobs one after the other and passes them to ``Sweep.run``, which returns while they still run. With
submitit, ``Sweep.run`` is called in the job's own process. What jobs and reports need is imported for them, because
most commands are no sweep.
"""

import csv
import io
import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.hydra_config import HydraConfig

from alignlab.cli.composition.command import Config, refuse
from alignlab.cli.sweep.begin import Begin
from alignlab.cli.sweep.job import UNREADABLE, Job, make_job, sweep_folder
from alignlab.cli.sweep.objective import Pending, check_objective, is_search, value_of, worst_value
from alignlab.config.resolve import as_yaml
from alignlab.distributed.ranks import first_error_only, own_rank, ranks
from alignlab.errors import InputError, RunError
from alignlab.run_folder.location import JOBS, SWEEP
from alignlab.system.credentials import masked
from alignlab.system.disk import write_text


@dataclass
class Sweep:
    """The sweep of a command, if there is one. Leaving the block waits for the jobs; an exception ends them."""

    running: dict[int, tuple[Job, subprocess.Popen]] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    ended: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __enter__(self) -> "Sweep":
        Begin.folder = None
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: TracebackType | None) -> None:
        if Begin.folder is None or not (Begin.folder / JOBS).is_dir():
            return
        processes = [process for _, process in self.running.values()]
        try:
            if error is not None:
                for process in processes:
                    process.terminate()
            self._wait(at_most=0)
        finally:  # also if a second signal ends the waiting
            for process in processes:
                if process.poll() is None:
                    process.kill()
        print(f"sweep: {write_table(Begin.folder)}", flush=True)
        if error is None:
            report(Begin.folder)

    @property
    def exit_code(self) -> int:
        """0 if all jobs are done or there were none, 1 if one failed or was stopped, else 2 if one was refused."""
        codes = {entry["exit_code"] for entry in _entries(Begin.folder, since=self.began)} if Begin.folder else set()
        return 1 if codes - {0, 2} else max(codes, default=0)

    def refused(self, run_dir: str | None) -> None:
        """Record a job that was refused before it got a process and a run.

        Args:
            run_dir: ``run_dir`` as typed.
        """
        hydra, name = HydraConfig.get().job, f"refused-{HydraConfig.get().job.num}"
        records = sweep_folder(run_dir) / JOBS / name
        Job(hydra.num, hydra.override_dirname, records, name, records, None).note(2)

    def run(self, config: Config) -> float | Pending | None:
        """Start a job, unless an earlier sweep finished it, as soon as fewer than ``launcher.num_jobs`` jobs run.

        Args:
            config: The resolved config of the job.

        Returns:
            The value of ``objective`` for a sweeper that searches; ``None`` for one that does not.

        Raises:
            InputError: The sweeper searches for a metric that does not exist, or for its worst value.
            RunError: A job is done and has not logged the metric.
        """
        if is_search():
            check_objective(config)
        job, num_jobs = make_job(config), config["launcher"]["num_jobs"]
        value = partial(self._value, job, config["objective"], worst_value()) if is_search() else lambda: None
        if job.newest_run("done"):
            self.ended[job.number] = entry = job.note(0, before=True)
            print(f"job {job.number}: done before, {entry['run']}", flush=True)
            return value()
        config = config | {"run_dir": job.run_dir and str(job.run_dir), "resume": config["resume"] or "auto"}
        if "submitit" in HydraConfig.get().launcher._target_:
            self.ended[job.number] = _run_here(config, job)
            return value() if own_rank() == 0 else None
        if ranks() is not None:
            why = f"its jobs start their own processes, and {ranks().launcher} has started this one as a rank"
            raise InputError("a sweep", why, "Type python train.py -m …")
        self._wait(at_most=num_jobs - 1)
        slot = min(set(range(num_jobs)) - self.running.keys())
        self.running[slot] = job, start(config, job, slot, num_jobs)
        if num_jobs > 1:
            return Pending(value) if is_search() else None
        self._wait(at_most=0)
        return value()

    def _value(self, job: Job, objective: str, worst: float) -> float:
        """Wait for a job, and return its value."""
        while job.number not in self.ended:
            self._wait(at_most=len(self.running) - 1)
        entry = self.ended[job.number]
        return value_of(Path(entry["run"]) if entry["exit_code"] == 0 else None, objective, worst)

    def _wait(self, at_most: int) -> None:
        """Wait until at most that many jobs run."""
        while True:
            for slot, (job, process) in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[slot]
                    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
                    self.ended[job.number] = entry = job.note(code)
                    print(f"job {job.number}: {entry['status']}, {entry['run']}", flush=True)
            if len(self.running) <= at_most:
                return
            time.sleep(0.1)


def report(folder: Path) -> None:
    """Print a sweep's results, and write its report; a report that fails ends nothing.

    Args:
        folder: Folder of the sweep.
    """
    from alignlab.report.records import read_records
    from alignlab.report.table import print_ranking
    from alignlab.report.write import PAGE, write_report

    try:
        results = write_report(read_records([folder]), folder / "report", metric=None)
    except InputError as error:
        print(f"no report: {masked(str(error))}", flush=True)
        return
    print_ranking(results.ranking, results.metric)
    print(f"report: {folder / 'report' / PAGE}", flush=True)


def start(config: Config, job: Job, slot: int, num_jobs: int) -> subprocess.Popen:
    """Start the process of a job; if several run at a time, with its share of the machine and an output file."""
    write_text(job.records / "config.yaml", as_yaml(config))
    target = f"run_dir='{config['run_dir']}'" if config["run_dir"] else "run_dir=null"
    words = ["train", "--from", str(job.records), target, f"resume='{config['resume']}'"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), SWEEP: job.sweep}
    output = None
    if num_jobs > 1:
        environment |= _share(slot, num_jobs)
        output = (job.records / "output.log").open("w")
    command = [sys.executable, "-m", "alignlab.cli.main", *words]
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output and subprocess.STDOUT)


def _share(slot: int, num_jobs: int) -> dict[str, str]:
    """Environment variables that give a job its share of the GPUs and cores."""
    import torch

    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // num_jobs)))}
    devices = ",".join(map(str, range(torch.cuda.device_count())))
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", devices).split(",") if name]
    if visible:
        each = max(1, len(visible) // num_jobs)
        start = slot * each % len(visible)
        share["CUDA_VISIBLE_DEVICES"] = ",".join(visible[start : start + each])
    return share


def _run_here(config: Config, job: Job) -> dict[str, Any]:
    """Run a job in this process, and return its entry; its errors must not end the sweep that waits for it."""
    from alignlab import run

    code = 0
    os.environ[SWEEP] = job.sweep
    try:
        with first_error_only():
            run.fit(config)
    except InputError as error:
        code = refuse(error, debug=False)
    except RunError as error:
        print(f"Failed. {masked(str(error))}", file=sys.stderr)
        code = 1
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        if error.code != code:
            print(error.code, file=sys.stderr)
    except Exception:
        traceback.print_exc()
        code = 1
    return job.note(code) if own_rank() == 0 else {}


def _entries(folder: Path, since: float = 0) -> list[dict[str, Any]]:
    """Entries of a sweep's jobs, sorted by number."""
    notes = [path for path in folder.glob(f"{JOBS}/*/job.json") if path.stat().st_mtime >= since]
    return sorted(filter(None, map(_entry, notes)), key=lambda entry: entry["job"])


def _entry(path: Path) -> dict[str, Any] | None:
    """Read the entry of a job; None if it is damaged."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return {**entry, "job": int(entry["job"]), "exit_code": int(entry["exit_code"])}
    except UNREADABLE:
        print(f"sweep: left out {path}, which cannot be read", flush=True)
        return None


def write_table(folder: Path) -> Path:
    """Write the entries of a sweep's jobs to ``sweep.csv``, one row per job.

    Args:
        folder: Folder of the sweep.

    Returns:
        Path of the file, which holds overrides, status, run folder and results of each job.
    """
    entries = _entries(folder)
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    rows = io.StringIO()
    writer = csv.DictWriter(rows, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries)
    write_text(folder / "sweep.csv", rows.getvalue())
    return folder / "sweep.csv"
