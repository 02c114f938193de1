"""A run goes on as what it was; a branch of it may differ in little, and says in what."""

from pathlib import Path

import pytest

from alignlab.config.resolve import as_yaml
from alignlab.errors import InputError
from alignlab.run import compare_config
from alignlab.run_folder import storage
from alignlab.run_folder.folder import RunFolder
from alignlab.system.disk import write_text

CONFIG = {
    "seed": 1,
    "run_dir": None,
    "strategy": {"name": "single"},
    "optimizer": {"lr": 1e-3},
    "data": {"path": "rows.jsonl", "cache_dir": None},
    "peft": None,
    "trainer": {"max_steps": 100},
    "method": {"reference": "initial"},
}


@pytest.fixture
def written(tmp_path):
    """A checkpoint of two processes, and the config of its run."""
    checkpoints = tmp_path / "run" / "checkpoints"
    (storage.new_partial(checkpoints, 5) / "state.ckpt").write_bytes(b"weights")
    storage.publish(checkpoints, 5, world_size=2, keep_last=9)
    write_text(tmp_path / "run" / "config.yaml", as_yaml(CONFIG))
    return storage.open_checkpoint(checkpoints / "last")


def go_on(written, changes, path=None, num_ranks=2):
    return compare_config(
        RunFolder(Path(path or written.folder.parents[1]), written), CONFIG | changes, num_ranks
    ).notes


FORBIDDEN = [
    ({"optimizer": {"lr": 1e-4}}, r"optimizer\.lr=0\.0001 \(was 0\.001\)"),
    ({"data": {"path": "other.jsonl", "cache_dir": None}}, r"data\.path=other\.jsonl \(was rows\.jsonl\)"),
    ({"peft": {"r": 8}}, r"peft\.r=8 \(was None\)"),
    ({"method": {"reference": "base"}}, r"method\.reference=base"),
]


@pytest.mark.parametrize(("changes", "said"), FORBIDDEN)
@pytest.mark.parametrize("path", [None, "elsewhere"])
def test_what_the_state_of_a_checkpoint_does_not_fit_is_refused(written, changes, said, path):
    with pytest.raises(InputError, match=f"resuming with .*{said}"):
        go_on(written, changes, path)


@pytest.mark.parametrize("changes", [{"seed": 2}, {"strategy": {"name": "fsdp"}}])
def test_another_seed_or_strategy_makes_a_branch(written, changes):
    with pytest.raises(InputError, match=r"resuming with .* \(was"):
        go_on(written, changes)
    (note,) = go_on(written, changes, "elsewhere")
    assert note.startswith("In this branch ") and "(was" in note


def test_how_long_and_how_it_is_watched_may_differ(written):
    changes = {"trainer": {"max_steps": 200}, "data": {"path": "rows.jsonl", "cache_dir": "there"}}
    assert go_on(written, changes) == ()
    assert "trainer.max_steps=200 (was 100)" in go_on(written, changes, "elsewhere")[0]


def test_another_number_of_processes_is_refused_in_the_run_and_not_in_a_branch(written):
    with pytest.raises(InputError, match=r"resuming with 1 processes: 2 wrote the checkpoint.*run_dir=NEW"):
        go_on(written, {}, num_ranks=1)
    assert go_on(written, {}, "elsewhere", num_ranks=1) == ("In this branch processes=1 (was 2)",)


def test_a_checkpoint_without_its_config_is_not_compared_and_that_is_said(written):
    (written.folder.parents[1] / "config.yaml").unlink()
    assert "was not compared" in go_on(written, {"seed": 2}, "elsewhere")[0]


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "5", "\x00"])
def test_a_damaged_config_is_told_in_words(written, text):
    (written.folder.parents[1] / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml"):
        go_on(written, {})
