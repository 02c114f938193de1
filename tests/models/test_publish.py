"""A trained model written anew for other tools gives the same logits there."""

import json
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alignlab.errors import InputError
from alignlab.models import adapters, export, publish
from alignlab.models.locations import POCKET
from tests.commands import QUIET, alignlab, start
from tests.models.test_export import IDS, KINDS, disturb, pretrained
from tests.models.test_export import publish as publishes


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(POCKET)


@pytest.fixture
def saved(tokenizer, tmp_path):
    """A trained LoRA of the embedded model, saved with stop tokens and a card, and its logits."""
    model = disturb(adapters.attach(pretrained("pocket").load_model(tokenizer), KINDS["lora"]()))
    model.generation_config.eos_token_id = [1, 7]
    export.save(model, tokenizer, tmp_path / "saved")
    export.write_card(tmp_path / "saved", "a card")
    return tmp_path / "saved", export.logits(model, IDS)


def test_a_merged_model_stops_where_the_adapter_does_and_has_its_card(saved, tmp_path):
    folder, logits = saved
    done = publishes(str(folder), tmp_path / "out")
    assert 0 < done.max_logit_difference < 1e-3 and done.dtype == "float32"
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [1, 7]
    assert (tmp_path / "out" / "README.md").read_text() == "a card"
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(export.logits(alone, IDS), logits, atol=1e-4, rtol=1e-4)
    template = AutoTokenizer.from_pretrained(folder).chat_template
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template


def test_what_opens_with_other_logits_is_removed(saved, tmp_path, monkeypatch):
    def fail(*words):
        raise export.ExportError("other logits")

    monkeypatch.setattr(publish, "verify", fail)
    with pytest.raises(export.ExportError, match="other logits"):
        publishes(str(saved[0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [".out.partial", ".out.old"])
def test_folders_of_others_beside_it_stay(saved, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="is in the way"):
        publishes(str(saved[0]), tmp_path / "out")
    assert (tmp_path / name / "notes.txt").read_text() == "keep"


def test_an_adapter_in_another_format_is_refused(saved, tmp_path):
    (saved[0] / "manifest.json").unlink()
    torch.save(load_file(file := saved[0] / "adapter_model.safetensors"), saved[0] / "adapter_model.bin")
    file.unlink()
    with pytest.raises(InputError, match=r"there is no adapter_model\.safetensors"):
        publishes(str(saved[0]), tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_an_adapter_alone_opens_in_peft(saved, tmp_path, dtype):
    folder, logits = saved
    done = publishes(str(folder), tmp_path / "out", merge=False, dtype=dtype)
    assert done.dtype == {"auto": "float32"}.get(dtype, dtype)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors").values()
    assert {str(tensor.dtype) for tensor in tensors} == {f"torch.{done.dtype}"}
    tolerance = {"auto": 1e-5, "bfloat16": 2e-2}[dtype] * logits.abs().max().item()
    opened = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(export.logits(opened, IDS), logits, atol=tolerance, rtol=0)
    assert publishes(str(tmp_path / "out"), tmp_path / "again", merge=False).num_bytes > 0


def test_full_weights_in_another_precision_and_in_small_files(tmp_path):
    done = publishes("pocket", tmp_path / "out", dtype="bfloat16", max_shard_size="1MB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1 and done.dtype == "bfloat16"
    assert all(file.stat().st_size < 1.1e6 for file in (tmp_path / "out").glob("*.safetensors"))
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert alone.dtype == torch.bfloat16
    trained = AutoModelForCausalLM.from_pretrained(POCKET, dtype="float32").state_dict()
    assert all(tensor.equal(trained[name].bfloat16()) for name, tensor in alone.state_dict().items())


def test_the_verb_says_what_it_wrote_and_refuses_a_difference(saved, tmp_path, capsys):
    folder, _ = saved
    assert alignlab("export", folder, f"to={tmp_path / 'out'}") == 0
    assert "logits within" in capsys.readouterr().out
    assert alignlab("export", folder, f"to={tmp_path / 'out'}") == 2
    assert alignlab("export", folder, f"to={tmp_path / 'b'}", "dtype=bfloat16", "max_logit_difference=1e-9") == 1
    assert not (tmp_path / "b").exists()
    assert "a logit differs by" in capsys.readouterr().err


def test_an_upload_makes_a_private_repository(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(publish, "create_repo", lambda *words, **options: called.append((words, options)))
    monkeypatch.setattr(publish, "upload_folder", lambda **options: called.append(options) or "https://hub/me/m")
    assert publish.push(tmp_path, "me/m") == "https://hub/me/m"
    assert called[0] == (("me/m",), {"private": True, "exist_ok": True})
    assert called[1].items() >= {"repo_id": "me/m", "folder_path": str(tmp_path)}.items()


def test_an_upload_that_fails_is_told_with_what_is_written(tmp_path, monkeypatch):
    def fail(*words, **options):
        raise OSError("no network")

    monkeypatch.setattr(publish, "create_repo", fail)
    with pytest.raises(InputError, match="is written, but not uploaded: no network"):
        publish.push(tmp_path, "me/m")


LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
with torch.no_grad():
    torch.save(model(torch.arange(3, 15).reshape(2, 6)).logits, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("peft", ["none", "lora", "dora", "qlora"])
@pytest.mark.parametrize("strategy", ["single", "fsdp", "deepspeed_z3"])
def test_runs_of_every_strategy_are_exported_and_opened_by_transformers_alone(tmp_path, peft, strategy):
    devices = 1 if strategy == "single" else 2
    words = [f"strategy={strategy}", f"peft={peft}", f"trainer.devices={devices}", "trainer.max_steps=2"]
    process = start("method=sft", *words, *QUIET, "data.num_rows=64", f"run_dir={tmp_path / 'run'}")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert alignlab("export", tmp_path / "run", f"to={tmp_path / 'out'}") == 0
    subprocess.run([sys.executable, "-c", LOGITS, str(tmp_path / "out"), str(tmp_path / "logits.pt")], check=True)
    # On the base as its files have it: of a quantised one the adapter is put on the unquantised weights.
    trained = pretrained(tmp_path / "run", "float32")
    model = trained.load_model(trained.load_tokenizer()) if peft != "qlora" else unquantised(tmp_path / "run")
    expected = export.logits(model, IDS)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-4, rtol=1e-4)


def unquantised(run):
    base = AutoModelForCausalLM.from_pretrained(POCKET, dtype="float32")
    return adapters.reattach(base, str(run / "model"))
