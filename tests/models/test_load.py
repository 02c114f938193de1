"""Opening weights: what a path holds, what is refused, and what is settled between weights and tokenizer."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub.utils import httpx
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from alignlab.errors import InputError
from alignlab.models import adapters, export, locations
from alignlab.models.load import Pretrained, fit_to_embedding
from alignlab.models.locations import locate
from alignlab.models.scratch import Scratch, num_rows, train_tokenizer
from tests.models.test_export import publish

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IDS = torch.arange(3, 15).reshape(2, 6)


@pytest.fixture
def tokenizer():
    return train_tokenizer(["one two three one two three"], 300, CHATML)


@pytest.fixture
def saved(tmp_path, tokenizer):
    """A run folder with tiny full weights in model/."""
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    weights = Scratch(
        config=config | heads,
        tokenizer="train",
        vocabulary_size=300,
        chat_template=None,
        seed=1,
        dtype="float32",
        attn_implementation="auto",
        gradient_checkpointing=False,
        compile=False,
    )
    export.save(weights.load_model(tokenizer), tokenizer, tmp_path / "run" / "model")
    return tmp_path / "run"


def pretrained(path, **changes):
    options = {"dtype": "float32", "attn_implementation": "auto", "gradient_checkpointing": False, "compile": False}
    return Pretrained(**{"path": str(path), "trust_remote_code": False, "revision": None, **options, **changes})


def opened(path, **changes):
    source = pretrained(path, **changes)
    return source.load_model(source.load_tokenizer())


# --- what a path holds ------------------------------------------------------------------------------------------------


def test_a_run_folder_stands_for_its_model(saved):
    assert locate(str(saved)) == locate(str(saved / "model"))._replace(asked=str(saved))


def test_an_adapter_folder_opens_on_its_base_and_trains(saved, tokenizer, tmp_path):
    model = adapters.attach(opened(saved), LoraConfig(r=2, target_modules="all-linear"))
    export.save(model, tokenizer, tmp_path / "adapter")
    place = locate(str(tmp_path / "adapter"))
    assert (place.weights, place.tokenizer) == (str(saved / "model"), place.adapter)
    again = opened(tmp_path / "adapter")
    assert isinstance(again, PeftModel) and adapters.trainable(again) == adapters.trainable(model)


def test_an_adapter_without_its_base_is_refused(saved, tokenizer, tmp_path):
    model = adapters.attach(opened(saved), LoraConfig(r=2, target_modules="all-linear"))
    export.save(model, tokenizer, tmp_path / "adapter")
    shutil.rmtree(saved)
    with pytest.raises(InputError, match="adapter needs the weights") as refusal:
        locate(str(tmp_path / "adapter"))
    assert str(saved / "model") in str(refusal.value) and "adapter_config.json" in refusal.value.instead


def test_the_embedded_model_is_found_by_name_and_below_adapters_from_elsewhere(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(locations, "POCKET", shutil.move(saved / "model", tmp_path / "here" / "assets" / "pocket"))
    assert locate("pocket").weights == str(tmp_path / "here" / "assets" / "pocket")
    (tmp_path / "adapter").mkdir()
    elsewhere = {"base_model_name_or_path": "/elsewhere/site-packages/alignlab/assets/pocket", "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(elsewhere))
    assert locate(str(tmp_path / "adapter")).weights == locate("pocket").weights


@pytest.mark.parametrize("path", ["nobody/no-such-model", "no-such-model", "./no/such/folder", "/no such folder"])
def test_a_path_that_holds_nothing_says_where_it_was_looked_for(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no config\.json") as refusal:
        opened(path)
    assert str((tmp_path / path).resolve()) in refusal.value.why
    assert ("hub" in refusal.value.why) == bool(locations.HUB_ID.fullmatch(path))


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("no route"), httpx.ReadTimeout("no route"), OSError("no route")]
)
def test_an_unreachable_hub_is_asked_once(failure, monkeypatch):
    asked = []

    def model_info(self, path, **options):
        asked.append(path)
        raise failure

    monkeypatch.setattr(locations.HfApi, "model_info", model_info)
    with pytest.raises(InputError, match="from the hub: no route"):
        opened("nobody/no-such-model")
    assert asked == ["nobody/no-such-model"]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        opened(tmp_path)


def test_a_folder_without_tokenizer_is_refused(saved):
    for file in (saved / "model").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="holds a model and no tokenizer"):
        pretrained(saved).load_tokenizer()


def test_a_tokenizer_without_its_vocabulary_is_refused(saved):
    """Transformers opens it, and it gives no token for any text."""
    config = json.loads((saved / "model" / "tokenizer_config.json").read_text())
    (saved / "model" / "tokenizer.json").unlink()
    config["tokenizer_class"] = "Qwen2Tokenizer"
    (saved / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no vocabulary"):
        pretrained(saved).load_tokenizer()


def test_a_folder_without_weights_is_refused(saved):
    (saved / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="AutoModelForCausalLM cannot read"):
        opened(saved)


def spoil_missing(tensors):
    del tensors["model.norm.weight"]


def spoil_shape(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:4].clone()


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_shape])
def test_no_layer_is_left_random(saved, spoil):
    file = saved / "model" / "model.safetensors"
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors .* model\.norm\.weight"):
        opened(saved)


def test_an_unknown_attention_is_refused_by_name(saved):
    with pytest.raises(InputError, match="Did you mean 'sdpa'"):
        opened(saved, attn_implementation="spda")


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(saved, dtype):
    assert {p.dtype for p in opened(saved, dtype=dtype).parameters()} == {getattr(torch, dtype)}


def test_gradient_checkpointing_changes_no_gradient(saved):
    plain, frugal = opened(saved), opened(saved, gradient_checkpointing=True)
    for model in (plain, frugal):
        model.train()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert frugal.is_gradient_checkpointing and not plain.is_gradient_checkpointing
    for ours, theirs in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_pad_token_in_the_config_freezes_no_embedding(saved):
    file = saved / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 1, "eos_token_id": 1}))
    model = opened(saved)
    ids = torch.tensor([[1, 5, 1, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight.grad[1].any()


def test_generation_stops_where_weights_and_tokenizer_say(saved, tokenizer):
    file = saved / "model" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": 7}))
    generation = opened(saved).generation_config
    assert generation.eos_token_id == sorted({7, tokenizer.eos_token_id})
    assert generation.pad_token_id == tokenizer.pad_token_id


# --- the tokenizer fits the embedding ---------------------------------------------------------------------------------


def test_a_fitting_tokenizer_is_left_alone(tokenizer):
    before = tokenizer.backend_tokenizer.to_str()
    assert fit_to_embedding(tokenizer, num_rows(tokenizer)).backend_tokenizer.to_str() == before
    assert tokenizer.pad_token == "<|pad|>"


def test_without_pad_token_a_free_one_is_taken(tokenizer):
    tokenizer.pad_token = None
    assert fit_to_embedding(tokenizer, num_rows(tokenizer)).pad_token == "<|pad|>"


def test_without_any_free_token_the_end_of_sequence_pads(saved, tokenizer, caplog):
    text = tokenizer.backend_tokenizer.to_str().replace("<|pad|>", "<|other|>")
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(text)
    tokenizer.pad_token = None
    with caplog.at_level("INFO", logger="alignlab"):
        assert fit_to_embedding(tokenizer, num_rows(tokenizer)).pad_token == "<|eos|>"
    assert "pad token: '<|eos|>'" in caplog.text


def test_a_pad_token_outside_the_embedding_is_replaced_and_unspellable(tokenizer, tmp_path):
    rows = num_rows(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[OUTSIDE]"})
    assert tokenizer("one [OUTSIDE]").input_ids[-1] == rows
    fit_to_embedding(tokenizer, rows).save_pretrained(tmp_path)
    for fitted in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert fitted.pad_token == "<|pad|>"
        assert max(fitted("one [OUTSIDE] two").input_ids) < rows
        assert fitted.decode(fitted("one [OUTSIDE] two").input_ids) == "one [OUTSIDE] two"


def test_another_token_outside_the_embedding_is_refused(tokenizer):
    rows = num_rows(tokenizer)
    tokenizer.add_tokens(["<think>"])
    with pytest.raises(InputError, match=rf"{rows + 1} tokens over an embedding of {rows} rows.*<think>"):
        fit_to_embedding(tokenizer, rows)


# --- real weights -----------------------------------------------------------------------------------------------------


def test_stories260k(shared):
    source = pretrained(shared / "data/models/stories260K")
    tokenizer = source.load_tokenizer()
    model = source.load_model(tokenizer).eval()
    assert model.generation_config.eos_token_id == [1, 2]
    prompt = torch.tensor([[tokenizer.bos_token_id]])
    text = tokenizer.decode(model.generate(prompt, max_new_tokens=40, do_sample=False)[0], skip_special_tokens=True)
    assert re.match(r"\s*Once upon a time, there was a little girl named Lily\.", text)


def test_stories260k_trains_with_an_adapter_and_merges(shared, tmp_path):
    source = pretrained(shared / "data/models/stories260K")
    tokenizer = source.load_tokenizer()
    model = adapters.attach(source.load_model(tokenizer), LoraConfig(r=4, target_modules="all-linear"))
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert adapters.zero_gradients(model) == []
    with torch.no_grad():
        for tensor in (p for p in model.parameters() if p.requires_grad):
            tensor -= 0.1 * tensor.grad
    export.save(model, tokenizer, tmp_path / "adapter")
    assert export.verify(tmp_path / "adapter", model, {"input_ids": IDS}) == 0.0
    assert publish(str(tmp_path / "adapter"), tmp_path / "merged").max_logit_difference < 1e-3
