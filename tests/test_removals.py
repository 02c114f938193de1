"""Every place of the code that removes, renames or overwrites files, and what may lie there."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "alignlab"

METHODS = {"rmtree", "unlink", "rmdir", "rename", "write_text", "write_bytes", "truncate"}
FUNCTIONS = {"os.replace", "os.remove", "os.truncate", "shutil.move", "shutil.rmtree"}
OURS = {"write_text"}
"""What changes what lies on a disk: methods of paths and files, functions of modules, functions of ours."""

PLACES = {
    "disk.py": "a hidden file of its own, renamed to the file that its callers below name",
    "folder.py": "names that this run has written, by list, in a folder that it holds the lock of",
    "overwrite.py": "a run, where the user asked for it, in a folder with nothing else: by name, manifest and metrics",
    "storage.py": "step folders, their hidden stages and `last`, by pattern, in a run's checkpoints",
    "metrics_file.py": "metrics.csv of a run",
    "summary.py": "summary.json of a run",
    "environment.py": "environment.json and uncommitted.diff of a run",
    "tracker.py": "the name of a run at a tracker, in a file of its own in the folder of the run",
    "samples.py": "samples.jsonl of a run",
    "launch.py": "a report in a temporary folder of its own",
    "export_trial.py": "the hidden stage of model/ in a new run, where the export is tried",
    "export.py": "model/ of a run and its hidden stages; another model only into a new or empty folder",
    "publish.py": "a model that fails its check, in a folder that was new or empty",
    "cache.py": "a table or a half-made one under the hash that names it, in the cache",
    "compiled_ops.py": "an old, empty `lock` beside a build.ninja of PyTorch, where no process holds it open",
    "precompute_reference.py": "cached values under the hash that names them, in the cache",
    "table.py": "counts.json in a folder that it has just made",
    "estimate.py": "a file that does not exist yet, or an earlier estimate",
    "preview.py": "a page that does not exist yet, or one of its own",
    "job.py": "job.json in a sweep's notes",
    "sweep.py": "config.yaml, output.log and sweep.csv of a sweep",
    "dashboard.py": "a file that does not exist yet",
    "results.py": "an evaluation, into a folder that is new, empty or holds an earlier one",
    "write.py": "a report, into a folder that is new, empty or holds an earlier report",
    "votes.py": "the part of a line of its own that a full disk left, at the end of the file of votes",
    "weights.py": "a folder with host and process in its name: its own, or that of a process that is dead",
}


def changes(path):
    """Line and name of every call that changes what lies on a disk."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name, is_method = ast.unparse(function), isinstance(function, ast.Attribute)
        last = name.rpartition(".")[2]
        modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        writes = last == "open" and any(mode in ("w", "wb", "r+", "x") for mode in modes)
        if writes or (last in METHODS if is_method else name in OURS) or name in FUNCTIONS:
            yield node.lineno, name


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_removal_is_known(path):
    found = list(changes(path))
    assert not found or path.name in PLACES, f"{path.name}{found}: say in PLACES what may lie there, and check it"


def test_no_place_is_listed_in_vain():
    assert {path.name for path in SOURCE.rglob("*.py") if list(changes(path))} == PLACES.keys()
