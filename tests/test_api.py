"""The same from Python."""

import re
import shlex
import subprocess
import sys

import pytest
import torch

import alignlab
from alignlab.errors import InputError
from tests.commands import QUIET, REPOSITORY
from tests.commands import alignlab as command

FEW = [
    *QUIET,
    "trainer.max_steps=2",
    "data.source.num_train=16",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return alignlab.train([*FEW, "peft=lora", f"run_dir={tmp_path_factory.mktemp('api') / 'run'}"])


def test_a_run_gives_its_metrics_config_and_model(trained):
    assert [row["progress/step"] for row in trained.metrics] == [0, 1, 2]
    assert trained.summary["status"] == "done" and trained.config["method"]["_target_"].endswith("SFT")
    model, tokenizer = trained.model(), trained.tokenizer()
    words = tokenizer.apply_chat_template([{"role": "user", "content": "1 + 1?"}], return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=words["input_ids"]).logits
    assert not model.training and model.peft_config and logits.isfinite().all()


def test_the_model_has_a_card(trained):
    card = (trained.path / "model" / "README.md").read_text(encoding="utf-8")
    command = shlex.join(["alignlab", "train", *FEW, "peft=lora", f"run_dir={trained.path}"])
    assert "A lora adapter for `pocket`, trained by sft on arithmetic" in card and f"\n{command}\n" in card
    before, after = (trained.summary[key]["val/loss"] for key in ("initial_metrics", "metrics"))
    assert f"| val/loss | {before:.4g} | {after:.4g} |" in card


def test_an_earlier_run_is_opened_by_its_folder(trained):
    assert alignlab.Run(str(trained.path)).metrics == trained.metrics
    with pytest.raises(InputError, match=r"there is no config\.yaml in it"):
        alignlab.Run(trained.path / "model")


def test_a_run_is_measured(trained):
    found = alignlab.evaluate([str(trained.path), "measures=[loss]"])
    assert found["loss"].value == pytest.approx(trained.summary["metrics"]["val/loss"], rel=1e-5)
    assert (trained.path / "evaluation" / "evaluation.json").is_file()
    with pytest.raises(InputError, match="from=nowhere"):
        alignlab.evaluate(["nowhere", "data=arithmetic"])


def test_compose_checks_as_the_command_line_does():
    assert alignlab.compose(["method=dpo", "model.path=somewhere"])["optimizer"]["lr"] == 1e-6
    with pytest.raises(InputError, match=r"Did you mean 'optimizer\.lr'"):
        alignlab.compose(["optimizer.lrr=1"])
    with pytest.raises(InputError, match="a single process trains on a single device"):
        alignlab.compose(["strategy=single", "trainer.devices=2"])


def test_mistakes_are_exceptions(tmp_path):
    with pytest.raises(InputError, match="absent"):
        alignlab.train([*FEW, "model.path=./absent/model", f"run_dir={tmp_path / 'run'}"])


def test_the_version(capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"alignlab {alignlab.__version__}\n"


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    cells, names = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL), {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"docs/python.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert names["steps"] == [0, 1, 2, 3, 4] and len(names["margins"]) == 4
    assert (names["run"].path / "plots" / "margins.png").is_file()
    torch.testing.assert_close(names["losses"][0], torch.tensor(0.1).mul(1.0).neg().exp().log1p())  # β δ = 0.1
    assert "\ndone\n" in printed and "Did you mean 'optimizer.lr'?" in printed


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, alignlab; alignlab.__version__; print({'torch', 'hydra', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="trian"):
        alignlab.trian  # noqa: B018
