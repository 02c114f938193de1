"""One job of a sweep: which run is its own, whether that is finished, and what came of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from alignlab.assemble import Config, name_of
from alignlab.run_folder.choice import config_hash
from alignlab.run_folder.folder import read_status
from alignlab.run_folder.location import JOBS
from alignlab.system.disk import write_text

STATUS = {0: "done", 2: "refused", 130: "stopped", 143: "stopped"}
"""What an exit code says of a job; any other: failed."""


UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What a file of JSON raises that is missing, damaged, or holds something else."""


@dataclass(frozen=True)
class Job:
    """A job, known by the hash of its config, whatever its number.

    Args:
        number: In the sweep.
        overrides: What sets it apart, as typed.
        runs: Folder in which its run's folder lies or will lie.
        digest: Hash of its config, with which the names of its runs end.
        place: Folder of the sweep's own notes about it.
        run_dir: Where a new run shall go; None: as any run.
    """

    number: int
    overrides: str
    runs: Path
    digest: str
    place: Path
    run_dir: Path | None

    def newest_run(self, status: str | None = None) -> Path | None:
        """Folder of its newest run; with a status, of the newest of those that have it."""
        found = sorted(path for path in self.runs.glob(f"*-{self.digest}") if path.is_dir())
        return next((path for path in reversed(found) if status in (None, read_status(path))), None)

    def note(self, exit_code: int, before: bool = False) -> dict[str, Any]:
        """Write down what came of it, for the sweep's table.

        Args:
            exit_code: Of the process.
            before: Whether an earlier sweep had finished it.
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
        write_text(self.place / "job.json", json.dumps(entry))
        return entry


def make_job(config: Config) -> Job:
    """The job that Hydra is about to run.

    Args:
        config: Its config, resolved.
    """
    hydra = HydraConfig.get()
    digest = config_hash(config)
    folder = None if config["run_dir"] is None else Path(config["run_dir"])
    runs = folder or Path("runs") / name_of(config["method"]["_target_"])
    place = sweep_folder(config["run_dir"]) / JOBS / digest
    job = Job(hydra.job.num, hydra.job.override_dirname, runs, digest, place, None)
    if folder is None:
        return job
    return Job(**vars(job) | {"run_dir": job.newest_run() or folder / f"{job.number}-{digest}"})


def sweep_folder(run_dir: str | None) -> Path:
    """Where the table of the sweep is written: the folder asked for, or one of its own."""
    return Path(run_dir or HydraConfig.get().sweep.dir)


def _results(run: Path | None) -> dict[str, float]:
    """Steps, seconds and held-out metrics of a run."""
    try:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        metrics = {name: value for name, value in summary["metrics"].items() if name.startswith("val/")}
        return {"steps": summary["steps"], "wall_seconds": summary["wall_seconds"], **metrics}
    except UNREADABLE:
        return {}
