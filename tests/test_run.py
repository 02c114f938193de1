"""What stands around a training: what is refused before its folder is made, and how its end is told."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from alignlab import assemble, run
from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.errors import InputError
from alignlab.models.locations import POCKET
from alignlab.system import disk
from tests.commands import QUIET, alignlab, start, summary

ABSENT = {
    "rows": ["data=jsonl", "data.path=absent.jsonl"],
    "weights": ["model.path=./absent/model"],
    "a run to start from": ["init_from=./absent/run"],
    "a reference": ["method=dpo", "method.reference=./absent/model"],
}
TWO = ["strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", ABSENT.values(), ids=ABSENT)
def test_what_is_not_there_is_refused_before_a_folder_is_made(folder, words):
    with pytest.raises(InputError, match="absent"):
        run.prepare(schema.check(compose(words)), num_ranks=1)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("words", [["model.path=copy"], ["method=dpo", "method.reference=copy"]], ids=" ".join)
def test_damaged_weights_are_refused_before_a_folder_is_made(folder, words):
    shutil.copytree(POCKET, folder / "copy")
    disk.write_manifest(folder / "copy")
    (folder / "copy" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"is damaged: tokenizer\.json"):
        run.prepare(schema.check(compose(words)), num_ranks=1)
    assert [path.name for path in folder.iterdir()] == ["copy"]


def test_leftovers_of_a_killed_run_are_cleared_before_a_new_one(folder):
    for name in (".config.yaml.partial", ".model.partial/x", ".model.old/x"):
        disk.write_text(folder / "run" / name, "")
    _, prepared = run.prepare(schema.check(compose(["run_dir=run"])), num_ranks=1)
    prepared.unlock()
    assert {path.name for path in (folder / "run").iterdir()} - {"uncommitted.diff"} == {
        *(".lock", "config.yaml", "environment.json")
    }


def test_processes_that_end_without_a_result_fail_the_run(monkeypatch, capsys):
    """As they do where something calls ``os._exit(0)`` in each of them."""
    monkeypatch.setattr(run.launch, "launch", lambda *_, **__: None)
    assert alignlab("train", *QUIET, *TWO, "run_dir=run") == 1
    assert "something in them called exit" in capsys.readouterr().err


FEW = [
    *QUIET,
    "trainer.max_steps=6",
    "trainer.limit_val_batches=0",
    "trainer.num_sanity_val_steps=0",
    "data.source.num_train=48",
    "data.source.num_validation=4",
    "data.global_batch_size=8",
    "data.batch_size_per_device=8",
]


def finished(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.slow
def test_several_threads_give_the_same_weights_each_time(folder):
    """PyTorch may add gradients of one position in any order; a prompt that completions share has several."""
    runs = [start(*FEW, "method=dpo", f"run_dir={name}", OMP_NUM_THREADS="2") for name in ("one", "other")]
    for process in runs:
        finished(process)
    ours, theirs = (load_file(folder / name / "model" / "model.safetensors") for name in ("one", "other"))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_a_model_computed_in_sixteen_bits_ends_like_any_other(folder):
    finished(start(*FEW, "method=dpo", "strategy=fsdp", "strategy.param_dtype=bfloat16", "run_dir=run"))
    assert summary(folder / "run")["status"] == "done"


def test_sampling_stops_where_the_generation_config_of_the_model_does(folder):
    shutil.copytree(POCKET, folder / "copy")
    file = folder / "copy" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [1, 77]}))
    config = schema.check(compose(["model.path=copy", "method=grpo"]))
    model, data = assemble.open_model_and_data(config)
    before = data.stop_tokens
    policy = assemble.make_policy(config, model, data)
    assert 77 not in before and set(data.stop_tokens) == {*before, 1, 77}
    assert policy.generation_config.eos_token_id == data.stop_tokens


@pytest.mark.parametrize(
    ("peft", "name"),
    [("none", None), ("ia3", "ia3"), ("prefix", "prefix_tuning"), ("llama_adapter", "adaption_prompt")]
    + [(word, word) for word in ("lora", "rslora", "dora", "qlora", "qlora_8bit")],
)
def test_a_summary_names_the_adapter(peft, name):
    assert assemble.adapter_name(schema.check(compose([f"peft={peft}"]))["peft"]) == name
