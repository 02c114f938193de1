"""One job of a sweep: its run, its status and its results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from alignlab.cli.composition.command import Config
from alignlab.run_folder.location import JOBS
from alignlab.run_folder.naming import name_of
from alignlab.system.disk import write_text

STATUS = {0: "done", 2: "refused", 130: "stopped", 143: "stopped"}
"""Status of a job by exit code; any other code means ``failed``."""


UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors of reading a JSON file that is missing, damaged, or has other content."""


@dataclass(frozen=True)
class Job:
    """A job, identified by the hash of its config.

    Args:
        number: Number of the job in the sweep.
        overrides: The overrides that distinguish it from other jobs, as typed.
        runs: Parent folder of its runs.
        digest: Hash of its config, with which the names of its run folders end.
        records: Folder of the sweep's own records of the job.
        run_dir: Folder of a new run; None for the default.
    """

    number: int
    overrides: str
    runs: Path
    digest: str
    records: Path
    run_dir: Path | None

    @property
    def sweep(self) -> str:
        """Folder of the sweep's table, for the jobs' environment."""
        return str(self.records.parents[1].resolve())

    def newest_run(self, status: str | None = None) -> Path | None:
        """Folder of its newest run, or of its newest run with a status."""
        from alignlab.run_folder.folder import read_status

        found = sorted(path for path in self.runs.glob(f"*-{self.digest}") if path.is_dir())
        return next((path for path in reversed(found) if status in (None, read_status(path))), None)

    def note(self, exit_code: int, before: bool = False) -> dict[str, Any]:
        """Record the result of the job, for the sweep's table.

        Args:
            exit_code: Exit code of the process.
            before: Whether an earlier sweep finished the job.
        """
        run = self.newest_run("done" if exit_code == 0 else None) if exit_code != 2 else None
        entry = {
            "job": self.number,
            "overrides": self.overrides,
            "status": "done before" if before else STATUS.get(exit_code, "failed"),
            "exit_code": exit_code,
            "run": str(run or ""),
            **_results(run),
        }
        write_text(self.records / "job.json", json.dumps(entry))
        return entry


def make_job(config: Config) -> Job:
    """Make the job that Hydra is about to run.

    Args:
        config: The resolved config of the job.
    """
    from alignlab.run_folder.choice import config_hash

    hydra = HydraConfig.get()
    digest = config_hash(config)
    folder = None if config["run_dir"] is None else Path(config["run_dir"])
    runs = folder or Path("runs") / name_of(config["method"]["_target_"])
    records = sweep_folder(config["run_dir"]) / JOBS / digest
    job = Job(hydra.job.num, hydra.job.override_dirname, runs, digest, records, None)
    if folder is None:
        return job
    return Job(**vars(job) | {"run_dir": job.newest_run() or folder / f"{job.number}-{digest}"})


def sweep_folder(run_dir: str | None) -> Path:
    """Folder of the sweep's table: ``run_dir`` if it is typed, otherwise Hydra's sweep folder."""
    return Path(run_dir or HydraConfig.get().sweep.dir)


def _results(run: Path | None) -> dict[str, float]:
    """Steps, wall-clock seconds and held-out metrics of a run."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        metrics = {name: value for name, value in summary["metrics"].items() if name.startswith("val/")}
        return {"steps": summary["steps"], "wall_seconds": summary["wall_seconds"], **metrics}
    except UNREADABLE:
        return {}
