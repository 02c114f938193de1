"""``overwrite=true``: what is removed, and what is never."""

import multiprocessing

import pytest

from alignlab.errors import InputError
from alignlab.run_folder.choice import make_run_folder
from alignlab.run_folder.folder import RunFolder
from alignlab.system.disk import write_manifest, write_text
from tests.run_folder.test_run_folder import CONFIG, leave_run, tree

SECTIONS = "model: {}\ndata: {}\nstrategy: {}\noptimizer: {}\ntrainer: {}\nseed: 1\nrun_dir: null\n"
CONFIG_OF_RUN = f"method: {{_target_: alignlab.methods.dpo.DPO}}\n{SECTIONS}"


@pytest.fixture
def run(tmp_path):
    """A finished run with everything that a run may leave."""
    path = tmp_path / "run"
    leave_run(path, "done", 100, 200)
    files = {
        "config.yaml": CONFIG_OF_RUN,
        "metrics.csv": "progress/step,train/loss,val/confidence\n0,,0.5\n1,2.5,\n",
        **dict.fromkeys(("train.log", "train-rank1.log", "samples.jsonl", ".lock", ".model.partial/x"), ""),
        **dict.fromkeys(("plots/loss.png", "plots/margins.png", "plots/confidence.png"), ""),
        **dict.fromkeys(("tensorboard/events.out.tfevents.1.vm.2.0", "tensorboard/hparams.yaml"), ""),
        **dict.fromkeys(("wandb/run_id.txt", "wandb/offline-run-20250101_120000-ab12/run-ab12.wandb"), ""),
        **dict.fromkeys(("mlflow/run_id.txt", "trackio/run_name.txt", "trace/rank-0.json"), ""),
        **dict.fromkeys(("evaluation/evaluation.json", "evaluation/completions.jsonl"), ""),
        **dict.fromkeys(("model/config.json", "model/checkpoint/shard", "checkpoints/.step-00000300.partial/x"), ""),
        "checkpoints/best/config.json": "",
    }
    for name, text in files.items():
        write_text(path / name, text)
    write_manifest(path / "model")
    write_manifest(path / "checkpoints" / "best")
    write_text(path / "model" / "README.md", "a card, which no manifest lists")
    (path / "wandb" / "latest-run").symlink_to("offline-run-20250101_120000-ab12")
    return path


def overwrite(path, resume=None):
    folder = make_run_folder(CONFIG, method="sft", run_dir=path and str(path), resume=resume, overwrite=True)
    folder.unlock()
    return folder


def test_a_run_is_removed_and_its_folder_stays(run):
    (run / "lost+found").mkdir()
    folder = overwrite(run)
    assert set(tree(run)) == {".lock"} and (run / "lost+found").is_dir()
    assert (folder.path, folder.checkpoint, folder.before) == (run, None, {".lock", "lost+found"})
    assert "is removed" in folder.notes[0]


def test_a_new_or_empty_folder_is_used_as_without(tmp_path):
    (tmp_path / "empty").mkdir()
    assert overwrite(tmp_path / "new").before is None
    assert overwrite(tmp_path / "empty").before == set()


STRANGERS = [
    *("notes.txt", ".git/HEAD", ".jobs/ab12/job.json", "data/train.jsonl", "checkpoints/best.pt"),
    *("checkpoints/step-notes.txt", "checkpoints/step-00000100/notes.txt", "checkpoints/last.1/state.ckpt"),
    "checkpoints/best/notes.txt",
    *(
        "model/model.gguf",
        "checkpoints/step-00000100/README.md",
        "model/sub/notes.txt",
        "plots/mine.png",
        "plots/old/loss.png",
    ),
    *(
        "tensorboard/notes.txt",
        "tensorboard/other/events.out.tfevents.1",
        "wandb/run-notes.txt",
        "wandb/settings",
        "mlflow/mlflow.db",
        "trace/notes.txt",
        "evaluation/notes.txt",
        "evaluation/old/evaluation.json",
    ),
]


@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_that_no_run_wrote_is_refused_and_nothing_is_removed(run, name):
    write_text(run / name, "mine")
    before = tree(run)
    with pytest.raises(InputError, match=r"repository|files that no run wrote: .*\. Nothing is removed"):
        overwrite(run)
    assert tree(run) == before


@pytest.mark.parametrize("folder", ["model", "checkpoints/step-00000100"])
def test_a_folder_without_a_manifest_is_not_known(run, folder):
    (run / folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=f"no run wrote: {folder}/"):
        overwrite(run)
    assert (run / "config.yaml").exists()


@pytest.mark.parametrize("text", ["", "seed: 1\n", "- 1\n", SECTIONS, "method: {a", "method: 3\n" + SECTIONS, "\0"])
def test_a_folder_with_another_config_is_not_a_run(run, text):
    (run / "config.yaml").write_text(text)
    before = tree(run)
    with pytest.raises(InputError, match="is not the config of a run of alignlab"):
        overwrite(run)
    assert tree(run) == before


def test_a_folder_of_something_else_gets_not_even_a_lock(tmp_path):
    for name in ("config.yaml", "checkpoints/epoch1.pt"):
        write_text(tmp_path / "theirs" / name, "lr: 1")
    with pytest.raises(InputError, match="is not the config"):
        overwrite(tmp_path / "theirs")
    assert set(tree(tmp_path / "theirs")) == {"config.yaml", "checkpoints/epoch1.pt"}


@pytest.mark.parametrize("name", ["checkpoints", "model", "plots"])
def test_of_a_link_only_the_link_is_removed(run, tmp_path, name):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    overwrite(run)
    assert set(tree(run)) == {".lock"} and tree(tmp_path / "elsewhere") == before


def test_it_is_not_combined_with_resume_and_needs_a_folder(run):
    before = tree(run)
    for resume in ("auto", str(run)):
        with pytest.raises(InputError, match=r"resume=.*would be removed\. Leave one of the two out"):
            overwrite(run, resume)
    with pytest.raises(InputError, match="nothing to overwrite"):
        overwrite(None)
    assert tree(run) == before


def _hold(path, ready, done):
    folder = RunFolder(path).lock()
    ready.set()
    done.wait(20)
    folder.unlock()


def test_a_live_run_is_refused(run):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run, ready, done))
    process.start()
    before = tree(run) if ready.wait(20) else None
    with pytest.raises(InputError, match="another process trains there now"):
        overwrite(run)
    done.set()
    process.join()
    assert tree(run) == before


def test_a_removal_that_was_killed_can_be_repeated(run, monkeypatch):
    monkeypatch.setattr("alignlab.run_folder.overwrite.shutil.rmtree", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        overwrite(run)
    monkeypatch.undo()
    assert (run / "config.yaml").exists()
    overwrite(run)
    assert set(tree(run)) == {".lock"}
