"""A model that reads images too (Gemma 3), trained on text alone: the rest of it stays as it is."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config

from alignlab.data.batching.collate import collate
from alignlab.models import adapters, scoring
from alignlab.models.locations import POCKET
from alignlab.models.text_part import freeze_beside_text, modules_beside_text
from tests.commands import QUIET, alignlab, start

BESIDE = ["model.vision_tower", "model.multi_modal_projector"]
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6, "query_pre_attn_scalar": 8}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def gemma3(vocabulary=101, implementation="packed", **special):
    text = {**TEXT, **LAYERS, "num_key_value_heads": 2, "vocab_size": vocabulary, **special}
    vision = {**VISION, "image_size": 28, "patch_size": 14}
    marks = {"image_token_index": 5, "boi_token_index": 3, "eoi_token_index": 4}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, **marks)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved weights with the tokenizer of the embedded model."""
    to, tokenizer = tmp_path_factory.mktemp("gemma3"), AutoTokenizer.from_pretrained(POCKET)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    gemma3(len(tokenizer), "eager", max_position_embeddings=512, **special).save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


def test_what_text_never_passes_is_found(tiny_model):
    assert modules_beside_text(gemma3()) == BESIDE
    assert modules_beside_text(tiny_model("gemma2")) == []


def test_what_text_never_passes_is_frozen():
    model = gemma3()
    freeze_beside_text(model)
    frozen = {name for name, tensor in model.named_parameters() if not tensor.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(tuple(BESIDE))} != set()


def test_flat_equals_padded(rows):
    model, found = gemma3().eval(), []
    for packing in (True, False):
        found.append(scoring.token_scores(model, collate(rows, packing=packing)).logps)
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "fc1"], r".*\.(q_proj|fc1)"], ids=str)
@pytest.mark.parametrize("excluded", [None, ["k_proj"], r".*\.k_proj"], ids=str)
def test_an_adapter_is_put_on_the_part_for_text(folder, targets, excluded):
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, target_modules=targets, exclude_modules=excluded)
    adapted = adapters.attach(model, config)
    names = list(adapters.trainable(adapted))
    assert names and all(".language_model." in name for name in names)
    assert any("k_proj" in name for name in names) == (excluded is None and targets == "all-linear")
    if excluded is None and targets == "all-linear":
        assert adapters.unadapted_layers(adapted) == []


def train(run, *words):
    alignlab("train", *QUIET, "trainer.max_steps=2", "data.num_rows=64", f"run_dir={run}", *words)
    return load_file(next((run / "model").glob("*model.safetensors")))


def test_all_weights_for_text_train_and_the_others_stay(folder, tmp_path):
    before = load_file(folder / "model.safetensors")
    after = train(tmp_path / "run", "method=sft", f"model.path={folder}", "optimizer.weight_decay=0.1")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "vision" not in name and "multi_modal" not in name}


@pytest.mark.slow
def test_stages_with_an_adapter(folder, tmp_path):
    trained = train(tmp_path / "sft", "method=sft", "peft=lora", f"model.path={folder}")
    words = ("method=dpo", "peft=lora", f"init_from={tmp_path / 'sft'}")
    further = train(tmp_path / "dpo", *words)
    assert further.keys() == trained.keys()
    assert all(not torch.equal(tensor, trained[name]) for name, tensor in further.items())


@pytest.mark.slow
def test_deepspeed_in_mixed_precision_writes_all_parts_in_float32(folder, tmp_path):
    """The frozen parts have 16 bits in memory, and the trained ones float32 masters."""
    words = ["method=sft", f"model.path={folder}", "strategy=deepspeed_z1", "trainer.precision=bf16-mixed"]
    process = start(*words, *QUIET, "data.num_rows=64", "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
