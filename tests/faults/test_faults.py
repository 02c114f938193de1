"""A short part of ``make faults``, which ``make test`` runs: kinds that need no disk of their own and little time."""

import pytest

from tests.faults.__main__ import run_kind

QUICK = ("kills", "neighbours", "numbers", "rows")
SLOW = ("attacks", "collisions", "damage", "overrides", "signals")


@pytest.mark.parametrize("kind", [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
def test_faults(kind, tmp_path):
    results = run_kind(kind, tmp_path / kind, seed=0, small=True, jobs=1)
    failed = [f"{result.name}: {result.why[:400]}" for result in results if result.verdict == "failed"]
    assert results and not failed, "\n".join(failed)
