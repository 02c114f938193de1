"""Saving, opening again and merging: the files hold what was trained."""

import functools
import json

import pytest
import torch
from peft import AdaptionPromptConfig, IA3Config, LoraConfig, PrefixTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from alignlab.errors import InputError
from alignlab.models import adapters, blockwise, export
from alignlab.models import publish as publishing
from alignlab.models.load import Pretrained
from alignlab.models.scratch import Scratch

publish = functools.partial(
    publishing.publish,
    merge=True,
    dtype="auto",
    max_shard_size="5GB",
    max_logit_difference=None,
    trust_remote_code=False,
)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = {"input_ids": torch.arange(3, 15).reshape(2, 6)}
KINDS = {
    "lora": lambda: LoraConfig(r=2, target_modules="all-linear"),
    "rslora": lambda: LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
    "dora": lambda: LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "ia3": lambda: IA3Config(target_modules="all-linear", feedforward_modules=[]),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=3),
    "prefix_projected": lambda: PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8),
    "llama_adapter": lambda: AdaptionPromptConfig(adapter_len=3, adapter_layers=2),
}
MERGEABLE = ["lora", "rslora", "dora", "ia3"]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="module")
def tokenizer():
    return scratch("llama").load_tokenizer(lambda: ["one two three one two three"])


@pytest.fixture
def opened(tmp_path, tokenizer):
    """Gives a saved base, opened again, with a trained adapter of the kind."""

    def build(kind=None, model_type="llama", dtype="float32", quantization=None, **keys):
        base = scratch(model_type, **keys).load_model(tokenizer).to(getattr(torch, dtype))
        export.save(base, tokenizer, tmp_path / "base")
        model = pretrained(tmp_path / "base").load_model(tokenizer, quantization)
        return disturb(adapters.attach(model, KINDS[kind]())) if kind else model

    return build


def scratch(model_type, **keys):
    return Scratch(
        config={"model_type": model_type, "num_key_value_heads": 1, **SIZES, **keys},
        tokenizer="train",
        vocabulary_size=300,
        chat_template="pocket",
        seed=1,
        dtype="float32",
        attn_implementation="auto",
        gradient_checkpointing=False,
        compile=False,
    )


def pretrained(path, dtype="auto"):
    return Pretrained(
        path=str(path),
        dtype=dtype,
        attn_implementation="auto",
        gradient_checkpointing=False,
        compile=False,
        trust_remote_code=False,
        revision=None,
    )


@torch.no_grad()
def disturb(model):
    """As training would: no trainable tensor keeps its start value."""
    torch.manual_seed(1)
    for tensor in model.parameters():
        if tensor.requires_grad:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_full_weights_reopen_with_the_same_logits(opened, tokenizer, tmp_path, model_type):
    model = disturb(opened(model_type=model_type, tie_word_embeddings=True))
    export.save(model, tokenizer, tmp_path / "model")
    assert export.verify(tmp_path / "model", model, IDS) == 0.0
    other_tools = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(export.logits(other_tools, IDS), export.logits(model, IDS))


@pytest.mark.parametrize("kind", KINDS)
def test_save_reload_same_logits(opened, tokenizer, tmp_path, kind):
    model = opened(kind)
    export.save(model, tokenizer, tmp_path / "model")
    assert export.verify(tmp_path / "model", model, IDS) <= 1e-6
    assert not (tmp_path / "model" / "model.safetensors").exists()
    reloaded = pretrained(tmp_path / "model").load_model(tokenizer)
    torch.testing.assert_close(export.logits(reloaded, IDS), export.logits(model, IDS))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trained_further_is_saved(opened, tokenizer, tmp_path, kind):
    export.save(opened(kind), tokenizer, tmp_path / "first")
    model = pretrained(tmp_path / "first").load_model(tokenizer)
    before = export.logits(model, IDS)
    export.save(disturb(model), tokenizer, tmp_path / "second")
    assert export.verify(tmp_path / "second", model, IDS) <= 1e-6
    assert (export.logits(model, IDS) - before).abs().max() > 1e-3


@pytest.mark.parametrize("quantization", [NF4, {"load_in_8bit": True}])
def test_save_reload_same_logits_on_a_quantised_base(opened, tokenizer, tmp_path, quantization):
    pytest.importorskip("bitsandbytes")
    model = opened("lora", quantization=BitsAndBytesConfig(**quantization))
    export.save(model, tokenizer, tmp_path / "model")
    assert export.verify(tmp_path / "model", model, IDS) <= 1e-5


@pytest.mark.parametrize("kind", [None, "lora"])
def test_a_folder_holds_tokenizer_template_and_stop_tokens(opened, tokenizer, tmp_path, kind):
    export.save(opened(kind), tokenizer, tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again.chat_template == tokenizer.chat_template
    assert again("one two 3").input_ids == tokenizer("one two 3").input_ids
    stops = json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.eos_token_id in ([stops] if isinstance(stops, int) else stops)


def test_saving_leaves_the_given_tensors_as_they_are(opened, tokenizer, tmp_path):
    model = opened()
    given = dict(model.state_dict())
    names = list(given)
    export.save(model, tokenizer, tmp_path / "model", given)
    assert list(given) == names and "lm_head.weight" in names


def test_saving_replaces_a_folder_and_leaves_nothing_beside_it(opened, tokenizer, tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "model" / "stale.bin").write_text("old")
    export.save(opened(), tokenizer, tmp_path / "out" / "model")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert not (tmp_path / "out" / "model" / "stale.bin").exists()


def test_saving_that_fails_leaves_the_old_folder(opened, tokenizer, tmp_path, monkeypatch):
    model = opened()
    export.save(model, tokenizer, tmp_path / "model")
    monkeypatch.setattr(export, "write_generation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.save(model, tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_evaluating_leaves_a_quantised_base_trainable(opened):
    pytest.importorskip("bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    model = opened("lora", quantization=BitsAndBytesConfig(**NF4), **wide)
    first = gradients(model)
    before = export.logits(model, IDS)
    assert all(torch.equal(first[name], second) for name, second in gradients(model).items())
    torch.testing.assert_close(export.logits(model, IDS), before, atol=0, rtol=0)


def gradients(model):
    model.train()
    model.zero_grad()
    model(**IDS, labels=IDS["input_ids"], use_cache=False).loss.backward()
    return {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


DAMAGES = {
    "value": lambda tensors, name: tensors.update({name: tensors[name] + 1e-3}),
    "shape": lambda tensors, name: tensors.update({name: tensors[name][:1].clone()}),
    "empty": lambda tensors, name: tensors.update({name: tensors[name][:0].clone()}),
    "missing": lambda tensors, name: tensors.pop(name),
    "superfluous": lambda tensors, name: tensors.update({name.replace("layers.0", "layers.9"): tensors[name].clone()}),
    "nothing": lambda tensors, name: tensors.clear(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_adapter_files_are_found(opened, tokenizer, tmp_path, damage):
    model = opened("lora")
    export.save(model, tokenizer, tmp_path / "model")
    spoil(tmp_path / "model" / "adapter_model.safetensors", damage, "lora_B")
    with pytest.raises(export.ExportError):
        export.verify(tmp_path / "model", model, IDS)


def test_tensors_that_were_never_gathered_are_found():
    shard = {"lora_B": torch.empty(0)}
    assert export.compare(shard, shard) == ["lora_B has shape [0], live [0]"]


@pytest.mark.parametrize("damage", ["value", "shape", "missing"])
def test_damaged_full_weights_are_found(opened, tokenizer, tmp_path, damage):
    model = opened()
    export.save(model, tokenizer, tmp_path / "model")
    spoil(tmp_path / "model" / "model.safetensors", damage, "layers.0.self_attn.q_proj")
    with pytest.raises(export.ExportError):
        export.verify(tmp_path / "model", model, None)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_model_without_room_on_its_device_is_compared_block_by_block(opened, tokenizer, tmp_path, monkeypatch, kind):
    """Weights outside of the blocks move for good; those of a block leave again after its forward."""
    model, real = opened(kind), torch.Tensor.to
    export.save(model, tokenizer, tmp_path / "model")
    expected = export.logits(model, IDS)
    reopened = export.reopen(tmp_path / "model", model, torch.float32)
    addresses = {name: tensor.data_ptr() for name, tensor in reopened.named_parameters()}
    monkeypatch.setattr(blockwise, "free_bytes", lambda device: 0)
    monkeypatch.setattr(torch.Tensor, "to", lambda *words, **options: real(*words, **options).clone())
    placed = blockwise.place(reopened, model.device)
    ours = export.logits(placed, IDS, model.device)
    assert (ours - expected).abs().max() < 1e-5
    stayed = {name for name, tensor in placed.named_parameters() if tensor.data_ptr() == addresses[name]}
    assert stayed == {name for name in addresses if ".layers." in name}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [None, "lora", "dora"])
def test_a_model_is_compared_on_a_gpu_that_is_nearly_full(opened, tokenizer, tmp_path, kind):
    """Of eight blocks one is on the GPU a second time."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8, "num_attention_heads": 16}
    model = opened(kind, **sizes).to("cuda")
    export.save(model, tokenizer, tmp_path / "model")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    rest = torch.empty(int(blockwise.free_bytes(model.device)) - weights // 2, dtype=torch.uint8, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert export.verify(tmp_path / "model", model, IDS) < 1e-2
    assert torch.cuda.max_memory_allocated() - before < weights // 3
    del rest


def spoil(file, damage, part):
    tensors = load_file(file)
    DAMAGES[damage](tensors, next(name for name in sorted(tensors) if part in name and "layers.0" in name))
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_truncated_file_is_found(opened, tokenizer, tmp_path):
    model = opened("lora")
    export.save(model, tokenizer, tmp_path / "model")
    file = tmp_path / "model" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(export.ExportError):
        export.verify(tmp_path / "model", model, IDS)


@pytest.mark.parametrize("kind", MERGEABLE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_same_logits(opened, tokenizer, tmp_path, kind, dtype):
    model = opened(kind, dtype=dtype)
    export.save(model, tokenizer, tmp_path / "model")
    merged = publish(str(tmp_path / "model"), tmp_path / "merged")
    with pytest.raises(InputError, match="it exists and is not empty"):
        publish(str(tmp_path / "model"), tmp_path / "merged")
    assert merged.dtype == dtype
    assert merged.num_bytes == sum(file.stat().st_size for file in (tmp_path / "merged").iterdir())
    # Both in float32: what is left is one rounding of each weight.
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="float32")
    apart = pretrained(tmp_path / "model", "float32").load_model(tokenizer)
    expected = export.logits(apart, IDS)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype] * expected.abs().max().item()
    torch.testing.assert_close(export.logits(alone, IDS), expected, atol=tolerance, rtol=0)


def test_merge_takes_the_unquantised_base(opened, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = opened("lora", quantization=BitsAndBytesConfig(**NF4))
    export.save(model, tokenizer, tmp_path / "model")
    assert publish(str(tmp_path / "model"), tmp_path / "merged").dtype == "float32"
    assert not hasattr(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config, "quantization_config")


def test_merge_beyond_the_threshold_writes_nothing(opened, tokenizer, tmp_path):
    export.save(opened("lora", dtype="bfloat16"), tokenizer, tmp_path / "model")
    with pytest.raises(export.ExportError, match="more than 0"):
        publish(str(tmp_path / "model"), tmp_path / "merged", max_logit_difference=0.0)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["prefix", "llama_adapter"])
def test_what_cannot_be_merged_is_refused(opened, tokenizer, tmp_path, kind):
    export.save(opened(kind), tokenizer, tmp_path / "model")
    with pytest.raises(InputError, match=r"does not change weights.*merge=false"):
        publish(str(tmp_path / "model"), tmp_path / "merged")
