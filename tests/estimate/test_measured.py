"""The estimate against the peak resident set of real trainings."""

import json

import pytest
from benchmarks.estimate_memory import measured, words_of

from tests.commands import alignlab


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sft_3m", "group_dpo_30m_fsdp", "grpo_30m"])
def test_within_15_percent(tmp_path, case):
    words = [*words_of(case, tmp_path), f"data.cache_dir={tmp_path / 'tokens'}"]
    assert alignlab("estimate", *words, f"estimate.json={tmp_path / 'found.json'}") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["peak_bytes"] == pytest.approx(measured(words, tmp_path), rel=0.15)
