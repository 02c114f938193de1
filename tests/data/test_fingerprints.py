"""The hashes of a run's data, by which two runs are compared."""

import json

import pytest

from alignlab.api import compose
from alignlab.assemble import open_model_and_data


@pytest.fixture
def fingerprints(tmp_path):
    """Gives the hashes of rows in a file, with further words."""

    def of(answers, *words):
        rows = [{"prompt": f"question {index}", "completion": answer} for index, answer in enumerate(answers)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        given = ("data=jsonl", f"data.path={tmp_path / 'rows.jsonl'}", "data.validation_size=1")
        _, data = open_model_and_data(compose([*given, *words]))
        return data.fingerprints

    return of


def test_they_change_with_the_rows_and_with_nothing_else(fingerprints):
    first = fingerprints("abcd")
    assert first.keys() == {"train", "validation"} and first["train"] != first["validation"]
    assert fingerprints("abcd", "seed=7", "data.max_tokens_per_sequence=100") == first
    assert fingerprints("abce")["train"] != first["train"]
    assert fingerprints("abcd", "data.num_rows=2")["train"] != first["train"]
