"""The estimate against the peak resident set of a real training."""

import json

import pytest
from benchmarks.estimate_memory import measured, words_of

from tests.commands import alignlab


@pytest.mark.slow
def test_within_15_percent(tmp_path):
    words = [*words_of("sft_3m", tmp_path), f"data.cache_dir={tmp_path / 'tokens'}"]
    assert alignlab("estimate", *words, f"estimate.json={tmp_path / 'found.json'}") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["peak_bytes"] == pytest.approx(measured(words, tmp_path), rel=0.15)
