"""Make a W&B workspace with the curves of some runs."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignlab.cli.composition.command import command
from alignlab.cli.composition.paths import paths_as_key
from alignlab.config.schema import check_keys
from alignlab.config.schema.root import DASHBOARD


def main(words: Sequence[str]) -> int:
    """Make a workspace, and save it at W&B or in a file.

    Args:
        words: Command line after the verb: folders, and ``key=value``.

    Returns:
        Exit code.
    """
    return command("dashboard", paths_as_key(words, "from"), partial(check_keys, sections=DASHBOARD), save)


def save(config: dict[str, Any]) -> None:
    """Make the workspace, and print where it is."""
    from alignlab.errors import InputError
    from alignlab.report.dashboard import make_workspace, tracker_of, write_json
    from alignlab.report.records import read_records
    from alignlab.run_folder.loggers import is_logged_in
    from alignlab.run_folder.wandb_run import offline_runs, sync_command

    records = read_records([Path(path) for path in config["from"]])
    project, entity = tracker_of(records) if config["project"] is None else (config["project"], None)
    project = project or os.environ.get("WANDB_PROJECT") or "alignlab"
    workspace = make_workspace(records, project, config["entity"] or entity, config["name"])
    waiting = [folder for record in records if record.path for folder in offline_runs(record.path)]
    if command := sync_command(waiting):
        print(f"runs that were kept offline: {command}")
    if config["to"] is not None:
        write_json(workspace, Path(config["to"]))
        print(f"workspace: {config['to']}")
        return
    if not is_logged_in():
        why = "nobody is logged in at W&B here"
        raise InputError("alignlab dashboard", why, "Type wandb login, or to=dashboard.json for a file")
    workspace.save()
    print(f"workspace: {workspace.url}")
