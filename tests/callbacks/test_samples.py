"""What is kept of samples when a run is resumed."""

import json

import pytest

from alignlab.callbacks.samples import SampleLog


@pytest.mark.parametrize(("first_step", "kept"), [(0, []), (1, [1, 1]), (21, [1, 1, 21]), (50, [1, 1, 21, 41])])
def test_records_after_the_checkpoint_are_cut(tmp_path, first_step, kept):
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 1, 21, 41)) + '{"step": 4')
    SampleLog(path=path, first_step=first_step).on_fit_start(None, None)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == kept


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"null\n", b'{"step": null}\n', b"[" * 10_000])
def test_damaged_records_are_left_out(tmp_path, damage):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage)
    SampleLog(path=path, first_step=9).on_fit_start(None, None)
    assert path.read_text() == '{"step": 1}\n'
