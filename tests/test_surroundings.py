"""Folders that the machine does not give: words that name the key to change, exit code 2, nothing left behind."""

import errno
import os

import pytest

from alignlab.data import datamodule
from tests.commands import QUIET, alignlab

SMALL = ["data=jsonl", "data.path=rows.jsonl", "data.validation_size=null", "trainer.max_steps=1", *QUIET]


@pytest.fixture(autouse=True)
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "completion": "a"}\n' * 4)
    (tmp_path / "file").touch()
    yield
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == ["file", "rows.jsonl"]
    assert not [path for path in tmp_path.glob("runs/*/*")]


@pytest.mark.parametrize(("variable", "value"), [("HOME", "file"), ("XDG_CACHE_HOME", "file"), ("HOME", "/proc")])
def test_a_home_that_cannot_be_written_names_the_key(monkeypatch, tmp_path, capsys, variable, value):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / value))
    assert alignlab("train", *SMALL) == 2
    refusal = capsys.readouterr().err
    assert "Refused. data.cache_dir=" in refusal and "Traceback" not in refusal


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/below", "x" * 300, "~nobody-of-that-name/cache"])
def test_a_cache_folder_that_cannot_be_is_refused(capsys, folder):
    assert alignlab("train", *SMALL, f"data.cache_dir='{folder}'") == 2
    assert "Refused. data.cache_dir=" in capsys.readouterr().err


def test_a_read_only_disk_is_named(monkeypatch, capsys):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/home/cache")

    monkeypatch.setattr(datamodule, "build_table", read_only)
    assert alignlab("train", *SMALL) == 2
    assert "Read-only file system. Type data.cache_dir=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["run_dir", "resume", "init_from", "model.path", "data.path", "data.validation_path"])
@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000])
def test_names_that_are_too_long_are_refused(capsys, key, name):
    assert alignlab("train", *SMALL, f"{key}={name}") == 2
    refusal = capsys.readouterr().err
    assert "Refused. " in refusal and "too long" in refusal
