"""Several validation sets with names: each is measured as if it were alone, and all together as one."""

import json

import lightning
import pytest

from alignlab.callbacks.exact_match import ExactMatch
from alignlab.callbacks.start_card import data_counts
from alignlab.config.monitors import check_monitors
from alignlab.data.sources.local import Files, Mixture
from alignlab.errors import InputError
from tests.methods.wiring import config_of, make, save_tokenizer, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    save_tokenizer(folder / "tokenizer")
    for name, number in {"a": 5, "b": 3, "c": 2}.items():
        said = iter(texts(ord(name), 3 * number))
        rows = [
            {name: next(said) for name in ("prompt", "chosen", "rejected")} | {"answer": "x", "worth": 1 + index}
            for index in range(number)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


ROWS = [{"prompt": "ab", "chosen": "cd", "rejected": "efg", "worth": 1}] * 2


def measured(folder, validation, *words):
    """What a validation logs."""
    given = [f"data.validation_path={json.dumps(validation)}", "method.weight_column=worth"]
    _, method, data = make(folder, ROWS, *words, *given)
    match = ExactMatch(num_prompts=4, max_completion_tokens=2, batch_size=8)
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, callbacks=[match], **silent)
    (found,) = trainer.validate(method, datamodule=data, verbose=False)
    return {name: value for name, value in found.items() if not name.startswith("progress/")}, data


@pytest.mark.parametrize("words", [["method=sft"], ["method=dpo", "method.reference=none", "data.packing=false"]])
def test_each_set_is_measured_as_if_it_were_alone(folder, words):
    a, b, c = (f"{folder}/{name}.jsonl" for name in "abc")
    found, data = measured(folder, {"easy": a, "hard": [b, c]}, *words)
    alone = {stage: measured(folder, files, *words)[0] for stage, files in {"val/easy": a, "val/hard": [b, c]}.items()}
    alone["val"] = measured(folder, [a, b, c], *words)[0]
    expected = {name.replace("val", stage, 1): value for stage, one in alone.items() for name, value in one.items()}
    # At most four prompts of each set are completed.
    del found["val/exact_match"], expected["val/exact_match"]
    assert found == pytest.approx(expected, rel=1e-5)
    assert {"val/easy/loss", "val/hard/loss", "val/loss", "val/hard/exact_match"} <= found.keys()
    counts = {part: one["rows"] for part, one in data_counts(data).items()}
    assert counts == {"train": 2, "validation": 10, "validation/easy": 5, "validation/hard": 5}


def test_a_set_can_be_monitored(folder):
    words = ["data=jsonl", f"data.path={folder}/a.jsonl", f"data.validation_path={{hard: {folder}/b.jsonl}}"]
    words += ["callbacks=early_stopping", "method=dpo"]
    for monitor, mode in (("val/hard/loss", "min"), ("val/hard/rewards/margins", "max"), ("val/loss", "min")):
        chosen = [f"callbacks.early_stopping.monitor={monitor}", f"callbacks.early_stopping.mode={mode}"]
        check_monitors(config_of(*words, *chosen))
    for monitor in ("val/soft/loss", "val/hard/lr", "hard/loss"):
        with pytest.raises(InputError, match="no such metric"):
            check_monitors(config_of(*words, f"callbacks.early_stopping.monitor={monitor}"))


@pytest.mark.parametrize("name", ["a/b", "rewards", "", "ä b"])
def test_a_name_that_would_spoil_a_metric_is_refused(folder, name):
    settings = {"path": f"{folder}/a.jsonl", "format": "auto", "columns": {}, "bad_rows": "error"}
    with pytest.raises(InputError, match="names of validation sets become parts of metrics"):
        Files(**settings, validation_path={name: f"{folder}/b.jsonl"})
    source = Files(**settings, validation_path={"b": f"{folder}/b.jsonl"})
    assert len(list(source.rows("validation"))) == len(list(source.rows("validation/b"))) == 3
    with pytest.raises(InputError, match="their names would be lost"):
        Mixture(sources={"one": source}, weights=None, stop="once", num_rows=None, seed=0)
