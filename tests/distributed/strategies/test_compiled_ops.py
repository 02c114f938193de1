"""Locks of compilations: old ones that a killed process left are removed; all others stay."""

import os
import time

import pytest

from alignlab.distributed.strategies.compiled_ops import SECONDS_TO_COMPILE, remove_dead_locks

OLD = SECONDS_TO_COMPILE + 60


@pytest.fixture
def make_lock(tmp_path, monkeypatch):
    """``make_lock(name)``: a lock in PyTorch's folder of extensions."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))

    def make(name, age=OLD, text="", build_file="build.ninja"):
        lock = tmp_path / name / "lock"
        lock.parent.mkdir(parents=True)
        (lock.parent / build_file).touch()
        lock.write_text(text)
        os.utime(lock, (time.time() - age,) * 2)
        return lock

    return make


@pytest.mark.parametrize("name", ["op", "py311_cpu/op"])
def test_an_old_lock_that_nobody_holds_is_removed(make_lock, caplog, name):
    lock = make_lock(name)
    remove_dead_locks()
    assert not lock.exists() and f"removed {lock}" in caplog.text


def test_a_lock_that_a_process_holds_stays(make_lock):
    lock = make_lock("op")
    with lock.open():
        remove_dead_locks()
        assert lock.exists()


def test_a_young_lock_stays_and_is_named(make_lock, caplog):
    """Another machine that shares the folder may hold it."""
    lock = make_lock("op", age=5)
    remove_dead_locks()
    assert lock.exists() and f"no process here holds {lock}" in caplog.text


@pytest.mark.parametrize("changes", [{"text": "1234"}, {"build_file": "notes.txt"}])
def test_a_file_of_that_name_that_is_not_pytorchs_stays(make_lock, changes):
    lock = make_lock("mine", **changes)
    remove_dead_locks()
    assert lock.exists()


def test_nothing_is_done_where_nothing_was_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    remove_dead_locks()
