"""Folders of runs as training leaves them, without training."""

import json

import yaml

from alignlab.run_folder.location import JOBS

METHODS = {name: f"alignlab.methods.{name}.{kind}" for name, kind in (("dpo", "DPO"), ("simpo", "SimPO"))}


def write_run(folder, *, method="dpo", seed=1, lr=1e-4, losses=(0.7, 0.5), status="done", packages=None, **more):
    """Write a run with validation before training and after it."""
    folder.mkdir(parents=True)
    config = {"method": {"_target_": METHODS[method], "beta": {"dpo": 0.1, "simpo": 2.0}[method]}}
    config |= {"optimizer": {"lr": lr}, "seed": seed, "run_dir": str(folder), "peft": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | more))
    metrics = {"val/loss": losses[-1], "progress/epoch": lr} if status == "done" else {}
    summary = {"status": status, "steps": 2, "tokens": 100, "wall_seconds": 1.5, "metrics": metrics}
    (folder / "summary.json").write_text(json.dumps(summary | {"initial_metrics": {"val/loss": losses[0]}}))
    lines = [f"{step},{loss},{loss}" for step, loss in enumerate(losses)]
    (folder / "metrics.csv").write_text("\n".join(["progress/step,val/loss,train/loss", *lines]) + "\n")
    (folder / "environment.json").write_text(json.dumps({"python": "3.11", "packages": packages or {"torch": "2.13"}}))
    (folder / "train.log").write_text("step 1\nValueError: no luck\n")
    return folder


def write_job(sweep, number, overrides, *, run="", status="refused"):
    """Write a sweep's record of a job."""
    folder = sweep / JOBS / str(number)
    folder.mkdir(parents=True)
    entry = {"job": number, "overrides": overrides, "status": status, "exit_code": 2, "run": str(run)}
    (folder / "job.json").write_text(json.dumps(entry))
