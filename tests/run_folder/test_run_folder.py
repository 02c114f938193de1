"""Which folder a run gets, and from where it starts."""

import json
import multiprocessing
import os
import re
import shutil

import pytest

from alignlab.errors import InputError
from alignlab.run_folder import choice, storage
from alignlab.run_folder.choice import config_hash, make_run_folder
from alignlab.run_folder.folder import RunFolder
from alignlab.system import disk

CONFIG = {"seed": 1, "optimizer": {"lr": 1e-3}, "run_dir": None, "resume": None, "debug": False}


@pytest.fixture
def make(tmp_path):
    """Make a run folder as a fresh process would, under a root of its own; the lock goes with it."""

    def make(run_dir=None, resume=None, config=CONFIG, overwrite=False):
        folder = make_run_folder(
            config,
            method="sft",
            run_dir=run_dir and str(run_dir),
            resume=resume and str(resume),
            overwrite=overwrite,
            root=tmp_path / "runs",
        )
        folder.unlock()
        return folder

    return make


def leave_run(path, status, *steps):
    """Leave in a folder what a run would have left."""
    checkpoints = path / "checkpoints"
    for step in steps:
        (storage.new_partial(checkpoints, step) / "state.ckpt").write_bytes(b"weights")
        storage.publish(checkpoints, step, world_size=1, keep_last=9)
    disk.write_text(path / "summary.json", json.dumps({"status": status}))


def test_a_new_run_gets_a_folder_of_its_own(make, tmp_path):
    folder = make()
    assert folder.path.parent == tmp_path / "runs" / "sft"
    assert re.fullmatch(rf"\d{{8}}-\d{{6}}-{config_hash(CONFIG)}", folder.path.name)
    assert folder.path.is_dir()
    assert (folder.checkpoint, folder.first_step, folder.notes) == (None, 0, ())


def test_runs_that_start_in_the_same_second_do_not_share(make, monkeypatch):
    monkeypatch.setattr(choice.time, "strftime", lambda _: "20250101-000000")
    folders = [make().path for _ in range(3)]
    assert len(set(folders)) == 3
    assert make(resume="auto").path == folders[-1]


def test_the_hash_is_about_what_is_trained():
    assert config_hash(CONFIG | {"run_dir": "elsewhere", "resume": "auto", "debug": True}) == config_hash(CONFIG)
    assert config_hash(CONFIG | {"seed": 2}) != config_hash(CONFIG)


def test_a_given_folder_is_taken_unless_it_holds_a_run(make, tmp_path):
    (tmp_path / "mine").mkdir()
    assert make(run_dir=tmp_path / "mine").path == tmp_path / "mine"
    leave_run(tmp_path / "mine", "stopped")
    with pytest.raises(InputError, match=r"already holds a run \(status stopped\). Type resume=auto"):
        make(run_dir=tmp_path / "mine")


@pytest.mark.parametrize("status", ["running", "exporting", "stopped", "failed", None])
def test_auto_takes_the_newest_unfinished_run_of_the_same_config(make, tmp_path, status):
    digest = config_hash(CONFIG)
    runs = tmp_path / "runs" / "sft"
    leave_run(runs / f"20250101-000000-{digest}", "failed", 100)
    leave_run(runs / f"20250102-000000-{digest}", status, 200, 300)
    leave_run(runs / f"20250103-000000-{digest}", "done", 400)
    leave_run(runs / "20250104-000000-0123abcd", "stopped", 500)
    folder = make(resume="auto")
    assert folder.path == runs / f"20250102-000000-{digest}"
    assert folder.first_step == 300
    assert "after step 300" in folder.notes[-1]


def test_auto_without_a_run_starts_fresh_and_says_so(make, tmp_path):
    assert "no unfinished run of this config" in make(resume="auto").notes[0]
    folder = make(resume="auto", run_dir=tmp_path / "mine")
    assert (folder.path, folder.checkpoint) == (tmp_path / "mine", None)
    assert "no run there yet; a fresh start" in folder.notes[0]


def test_auto_falls_back_from_a_broken_checkpoint_and_says_so(make, tmp_path):
    leave_run(tmp_path / "mine", "failed", 100, 200)
    (tmp_path / "mine" / "checkpoints" / "step-00000200" / "state.ckpt").write_bytes(b"wei")
    folder = make(resume="auto", run_dir=tmp_path / "mine")
    assert folder.first_step == 100
    assert "step-00000200 is broken" in folder.notes[0]


def tree(folder):
    """Every file below a folder with its content; links with their target."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def _every_checkpoint_broken(path):
    leave_run(path, "failed", 100)
    (path / "checkpoints" / "step-00000100" / "state.ckpt").unlink()


def _checkpoints_removed(path):
    leave_run(path, "done", 100)
    shutil.rmtree(path / "checkpoints")
    disk.write_text(path / "model" / "config.json", "{}")


def _only_a_model(path):
    disk.write_text(path / "config.yaml", "seed: 1")
    disk.write_text(path / "model" / "config.json", "{}")


@pytest.mark.parametrize("leave", [_every_checkpoint_broken, _checkpoints_removed, _only_a_model])
def test_auto_does_not_start_anew_over_what_a_run_has_come_to(make, tmp_path, leave):
    leave(tmp_path / "mine")
    before = tree(tmp_path / "mine")
    with pytest.raises(InputError, match="a fresh start would overwrite what is there"):
        make(resume="auto", run_dir=tmp_path / "mine")
    assert tree(tmp_path / "mine") == before


@pytest.mark.parametrize("resume", ["", "checkpoints/last", "checkpoints/step-00000200"])
def test_a_path_continues_its_run(make, tmp_path, resume):
    leave_run(tmp_path / "mine", "done", 100, 200)
    folder = make(resume=tmp_path / "mine" / resume)
    assert (folder.path, folder.first_step, folder.is_branch) == (tmp_path / "mine", 200, False)


def test_an_older_checkpoint_does_not_overwrite_what_came_after_it(make, tmp_path):
    leave_run(tmp_path / "mine", "done", 100, 200)
    with pytest.raises(InputError, match=r"gone on to step 200, which would be overwritten. Type run_dir=NEW"):
        make(resume=tmp_path / "mine" / "checkpoints" / "step-00000100")


def test_a_path_with_another_run_dir_branches_off(make, tmp_path):
    leave_run(tmp_path / "mine", "done", 100, 200)
    folder = make(resume=tmp_path / "mine" / "checkpoints" / "step-00000100", run_dir=tmp_path / "branch")
    assert (folder.path, folder.first_step, folder.is_branch) == (tmp_path / "branch", 100, True)
    assert folder.origin == tmp_path / "mine"
    leave_run(tmp_path / "branch", "done")
    with pytest.raises(InputError, match="already holds a run"):
        make(resume=tmp_path / "mine", run_dir=tmp_path / "branch")


@pytest.mark.parametrize(("resume", "said"), [("nothing", "no such folder"), ("empty", "holds no checkpoint")])
def test_a_path_without_a_checkpoint_is_refused(make, tmp_path, resume, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said):
        make(resume=tmp_path / resume)


def test_a_broken_checkpoint_asked_for_by_name_is_refused(make, tmp_path):
    leave_run(tmp_path / "mine", "failed", 100)
    (tmp_path / "mine" / "checkpoints" / "last" / "state.ckpt").unlink()
    with pytest.raises(InputError, match=r"state\.ckpt is missing"):
        make(resume=tmp_path / "mine" / "checkpoints" / "last")


@pytest.mark.parametrize(
    "facts", [{"step": "100"}, {"step": None}, {"step": 99}, {"world_size": 0}, {"world_size": "1"}]
)
def test_a_checkpoint_whose_manifest_names_another_step_or_no_ranks_is_refused(make, tmp_path, facts):
    leave_run(tmp_path / "mine", "failed", 100)
    manifest = tmp_path / "mine" / "checkpoints" / "last" / disk.MANIFEST
    disk.write_text(manifest, json.dumps(json.loads(manifest.read_text()) | facts))
    with pytest.raises(InputError, match=r"manifest\.json says step"):
        make(resume=manifest.parent)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with papers in it, in which one works."""
    for name in ("papers/draft.tex", "work/notes.txt", "work/.git/HEAD", "repository/.git/HEAD", "mine/notes.txt"):
        disk.write_text(tmp_path / name, name)
    for name in ("environment.json", "metrics.csv"):
        disk.write_text(tmp_path / "theirs" / name, "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(("resume", "overwrite"), [(None, False), ("auto", False), (None, True)])
@pytest.mark.parametrize(
    ("run_dir", "said"),
    [
        ("", "the name is empty"),
        (" ", "the name is empty"),
        (".", "it is the working folder"),
        ("{home}/work", "it is the working folder"),
        ("..", "it is the working folder, or contains it"),
        ("/", "it is the working folder, or contains it"),
        ("{home}/repository", "it is a repository"),
        ("{home}/papers", "the folder holds files that are not of a run: draft.tex"),
        ("{home}/mine", "the folder holds files that are not of a run: notes.txt"),
        ("{home}/theirs", "the folder holds files that are not of a run: environment.json, metrics.csv"),
        ("{home}/mine/notes.txt", "it is not a folder"),
        ("x" * 300, "cannot be a folder"),
        ("nul\0", "cannot be a folder"),
    ],
)
def test_a_folder_that_is_not_for_one_run_is_refused_before_anything_is_written(home, run_dir, said, resume, overwrite):
    before = tree(home)
    with pytest.raises(InputError, match=said):
        make_run_folder(CONFIG, method="sft", run_dir=run_dir.format(home=home), resume=resume, overwrite=overwrite)
    assert tree(home) == before


def test_the_home_folder_is_refused_from_elsewhere(home, monkeypatch):
    monkeypatch.chdir("/")
    with pytest.raises(InputError, match="it is your home folder"):
        make_run_folder(CONFIG, method="sft", run_dir=str(home), resume=None, overwrite=False)


def refused_after(folder):
    """What a run writes before it can be refused while it opens its data."""
    folder.write_config("seed: 1")
    for name in ("train.log", "summary.json", "wandb/run/config.yaml", ".summary.json.partial"):
        disk.write_text(folder.path / name, "new")
    folder.discard()


def test_a_refused_run_takes_its_own_new_folder_away(make, tmp_path):
    folder = make(run_dir=tmp_path / "new" / "run")
    refused_after(folder)
    assert not folder.path.exists()


def test_a_refused_run_leaves_a_folder_that_was_there(make, tmp_path):
    (tmp_path / "mine").mkdir()
    refused_after(make(run_dir=tmp_path / "mine"))
    assert tree(tmp_path / "mine") == {} and (tmp_path / "mine").is_dir()


def test_a_refused_run_leaves_curves_and_logs_that_were_there(make, tmp_path):
    for name in ("plots/loss.png", "train-rank1.log", ".model.old/x"):
        disk.write_text(tmp_path / "mine" / name, "old")
    before = tree(tmp_path / "mine")
    refused_after(make(run_dir=tmp_path / "mine"))
    assert tree(tmp_path / "mine") == before


def test_a_refused_run_takes_its_metrics_away_where_no_step_is_in_them(make, tmp_path):
    folder = make(run_dir=tmp_path / "run")
    disk.write_text(folder.metrics, "progress/step,val/loss\n0,2.5\n")
    refused_after(folder)
    assert not folder.path.exists()


def test_a_refused_run_leaves_what_others_put_into_its_folder_meanwhile(make, tmp_path):
    folder = make(run_dir=tmp_path / "run")
    disk.write_text(folder.path / "notes.txt", "mine")
    refused_after(folder)
    assert tree(folder.path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "trained", ["checkpoints/step-00000001/manifest.json", "model/config.json", "metrics.csv"], ids=lambda name: name
)
def test_nothing_is_taken_away_once_a_step_was_trained(make, tmp_path, trained):
    folder = make(run_dir=tmp_path / "run")
    disk.write_text(folder.path / trained, "progress/step,train/loss\n1,2.5\n")
    before = tree(folder.path)
    folder.discard()
    assert tree(folder.path) == before


def test_a_refused_resume_leaves_the_run_as_it_was(make, tmp_path):
    leave_run(tmp_path / "mine", "stopped", 100)
    before = tree(tmp_path / "mine")
    make(run_dir=tmp_path / "mine", resume="auto").discard()
    assert {k: v for k, v in tree(tmp_path / "mine").items() if k != ".lock"} == before


def test_leftovers_of_a_killed_run_are_cleared_and_nothing_else(make, tmp_path):
    leave_run(tmp_path / "mine", "running", 100)
    kept = tree(tmp_path / "mine") | {".mine": b"", "checkpoints/.gitignore": b"", "best.pt": b""}
    left = (".model.partial/x", ".model.old/x", ".config.yaml.partial", "checkpoints/.step-00000200.partial/x")
    for name in (*left, ".mine", "checkpoints/.gitignore", "best.pt"):
        disk.write_text(tmp_path / "mine" / name, "")
    make(run_dir=tmp_path / "mine", resume="auto").remove_leftovers()
    assert {k: v for k, v in tree(tmp_path / "mine").items() if k != ".lock"} == kept


def _try_to_lock(path, answers):
    try:
        RunFolder(path).lock()
        answers.put("locked")
    except InputError as error:
        answers.put(error.why)


@pytest.mark.parametrize(
    "name", [".lock", "train.log", "train-rank1.log", "summary.json", "config.yaml", "samples.jsonl"]
)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_lies_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} in it is not a file"):
        RunFolder(tmp_path).lock()


def test_a_live_run_is_left_alone(tmp_path):
    answers = multiprocessing.get_context("fork").Queue()
    mine = RunFolder(tmp_path).lock()
    for expected in ("another process trains there now", "locked"):
        process = multiprocessing.get_context("fork").Process(target=_try_to_lock, args=(tmp_path, answers))
        process.start()
        assert answers.get(timeout=20) == expected
        process.join()
        mine.unlock()
