"""What surrounded a run: packages, commits and changes that were not committed."""

import json
import subprocess

import torch

from alignlab.run_folder import environment
from alignlab.system import credentials


def repository(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    run = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*run, "init", "-q"], check=True)
    subprocess.run([*run, "add", "."], check=True)
    subprocess.run([*run, "commit", "-q", "-m", "x"], check=True)
    return folder


def test_the_code_of_the_working_folder_is_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(repository(tmp_path / "mine", loss="old\n", secret="-\n"))
    monkeypatch.setenv("MINE_TOKEN", "hidden-secret-123")
    monkeypatch.setattr(credentials, "_known", {"MINE_TOKEN"})
    (tmp_path / "run").mkdir()
    environment.write_environment(tmp_path / "run")
    clean = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert clean["packages"]["torch"] == torch.__version__ and len(clean["code"]["working folder"]) == 40
    (tmp_path / "mine" / "loss").write_text("new\n")
    (tmp_path / "mine" / "secret").write_text("hidden-secret-123\n")
    environment.write_environment(tmp_path / "run")
    changed = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert changed["code"]["working folder"] == clean["code"]["working folder"] + " with changes"
    diff = (tmp_path / "run" / "uncommitted.diff").read_text()
    assert "# working folder" in diff and "-old\n+new\n" in diff and "hidden-secret-123" not in diff


def test_without_git_or_a_repository_only_packages_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    environment.write_environment(tmp_path)
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["code"] == {} and found["packages"] and not (tmp_path / "uncommitted.diff").exists()
