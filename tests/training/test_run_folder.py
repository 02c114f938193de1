"""Which folder a run gets, and from where it starts."""

import json
import multiprocessing
import re

import pytest

from alignlab import disk
from alignlab.errors import InputError
from alignlab.training import run_folder, storage
from alignlab.training.run_folder import RunFolder, config_hash, make_run_folder

CONFIG = {"seed": 1, "optimizer": {"lr": 1e-3}, "run_dir": None, "resume": None, "debug": False}


@pytest.fixture
def make(tmp_path):
    """Make a run folder as a fresh process would, under a root of its own; the lock goes with it."""

    def make(run_dir=None, resume=None, config=CONFIG):
        folder = make_run_folder(
            config,
            method="sft",
            run_dir=run_dir and str(run_dir),
            resume=resume and str(resume),
            root=tmp_path / "runs",
        )
        folder._lock.clear()
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
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20250101-000000")
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


def test_auto_takes_the_newest_unfinished_run_of_the_same_config(make, tmp_path):
    digest = config_hash(CONFIG)
    runs = tmp_path / "runs" / "sft"
    leave_run(runs / f"20250101-000000-{digest}", "failed", 100)
    leave_run(runs / f"20250102-000000-{digest}", "stopped", 200, 300)
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


def test_auto_where_every_checkpoint_is_broken_starts_the_run_again(make, tmp_path):
    leave_run(tmp_path / "mine", "failed", 100)
    (tmp_path / "mine" / "checkpoints" / "step-00000100" / "state.ckpt").unlink()
    folder = make(resume="auto", run_dir=tmp_path / "mine")
    assert folder.checkpoint is None
    assert "no whole checkpoint there; a fresh start" in folder.notes[-1]


@pytest.mark.parametrize(("resume", "step"), [("", 200), ("checkpoints/last", 200), ("checkpoints/step-00000100", 100)])
def test_a_path_continues_its_run(make, tmp_path, resume, step):
    leave_run(tmp_path / "mine", "done", 100, 200)
    folder = make(resume=tmp_path / "mine" / resume)
    assert (folder.path, folder.first_step) == (tmp_path / "mine", step)


def test_a_path_with_another_run_dir_branches_off(make, tmp_path):
    leave_run(tmp_path / "mine", "done", 100, 200)
    folder = make(resume=tmp_path / "mine" / "checkpoints" / "step-00000100", run_dir=tmp_path / "branch")
    assert (folder.path, folder.first_step) == (tmp_path / "branch", 100)
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


def _try_to_lock(path, answers):
    try:
        RunFolder(path).lock()
        answers.put("locked")
    except InputError as error:
        answers.put(error.why)


def test_a_live_run_is_left_alone(tmp_path):
    answers = multiprocessing.get_context("fork").Queue()
    mine = RunFolder(tmp_path).lock()
    for expected in ("another process trains there now", "locked"):
        process = multiprocessing.get_context("fork").Process(target=_try_to_lock, args=(tmp_path, answers))
        process.start()
        assert answers.get(timeout=20) == expected
        process.join()
        mine._lock.pop() if mine._lock else None
