"""Locks of compilations: what a killed process left is removed, what a living one holds stays."""

from alignlab.distributed.strategies.compiled_ops import remove_dead_locks


def test_only_locks_that_nobody_holds_are_removed(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead, held = (tmp_path / name / "lock" for name in ("py311_cpu/dead", "held"))
    for lock in (dead, held):
        lock.parent.mkdir(parents=True)
        lock.touch()
    with held.open():
        remove_dead_locks()
        assert held.exists() and not dead.exists()
    assert str(dead) in caplog.text
    remove_dead_locks()
    assert not held.exists()


def test_nothing_is_done_where_nothing_was_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    remove_dead_locks()
