"""Errors of a disk: recognised, and reported in a paragraph."""

import errno
import os
import shutil

import pytest
from safetensors import SafetensorError

from alignlab.errors import InputError, RunError
from alignlab.run import explain_disk_errors
from alignlab.run_folder.folder import read_status
from alignlab.system.disk import LOCK, disk_fault, read_manifest, write_manifest, write_text


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path / "run" / LOCK, "")
    return tmp_path / "run"


FULL = OSError(errno.ENOSPC, "No space left on device")
FAULTS = [
    FULL,
    OSError(errno.EROFS, "Read-only file system"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_disk_at_fault_is_told_in_a_paragraph_whichever_library_met_it(folder, error):
    with pytest.raises(RunError, match=r"the run in .*resume=auto"), explain_disk_errors(folder):
        raise error
    with pytest.raises(RunError), explain_disk_errors(folder):
        try:
            raise error
        finally:
            raise ValueError("while the summary is written")


def test_what_lies_in_the_place_of_a_file_is_told(folder):
    (folder / "summary.json").mkdir()
    with pytest.raises(RunError, match="Is a directory"), explain_disk_errors(folder):
        write_text(folder / "summary.json", "{}")


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone_is_told_even_if_something_was_written_there_since(folder, again):
    shutil.rmtree(folder)
    if again:
        write_text(folder / "summary.json", "{}")
    assert disk_fault(FileNotFoundError(errno.ENOENT, "No such file"), folder) == "the folder is gone"


@pytest.mark.parametrize("error", [ValueError("a bug"), FileNotFoundError("config.json"), InputError("a", "b", "c")])
def test_other_errors_stay_what_they_are(folder, error):
    with pytest.raises(type(error)), explain_disk_errors(folder):
        raise error


def test_a_manifest_shows_what_is_missing_and_what_is_different(tmp_path):
    write_text(tmp_path / "a", "one")
    write_manifest(tmp_path, step=3)
    assert read_manifest(tmp_path) == {"step": 3}
    for content, said in (("two", "content of a is not"), ("four", "a has 4 bytes"), (None, "a is missing")):
        (tmp_path / "a").unlink() if content is None else write_text(tmp_path / "a", content)
        with pytest.raises(ValueError, match=said):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "5", '{"files": 5}', '{"files": {"a": 5}}', '{"files": {"a": {}}}', "[" * 9999]
)
def test_a_damaged_manifest_is_said_to_be_one(tmp_path, text):
    write_text(tmp_path / "a", "one")
    write_text(tmp_path / "manifest.json", text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "a"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    write_text(tmp_path / "a", "one")
    write_manifest(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=name):
        read_manifest(tmp_path)


def test_a_summary_that_is_a_pipe_says_nothing(tmp_path):
    os.mkfifo(tmp_path / "summary.json")
    assert read_status(tmp_path) is None
