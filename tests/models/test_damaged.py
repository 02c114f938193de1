"""Files of models and adapters that are damaged in every way, and configs that no model can be made of, are refused."""

import json
import shutil

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from alignlab.errors import InputError
from alignlab.models import adapters, export
from alignlab.models.load import Pretrained, refuse_damaged
from alignlab.models.locations import locate
from alignlab.models.scratch import Scratch, train_tokenizer

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", **SIZES, "num_key_value_heads": 1}
WHOLE = "whole"
CONTENTS = {
    "empty": b"",
    "cut JSON": b"{",
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "binary": b"\x00\xff" * 20,
    "deep": b"[" * 100_000,
    "unknown kinds": b'{"model_type": "nope", "peft_type": "NOPE"}',
    "kinds that are lists": b'{"model_type": [], "peft_type": []}',
    "half": lambda whole: whole[: len(whole) // 2],
    "the beginning replaced": lambda whole: b"\xff" * 100 + whole[100:],
    "a folder": None,
}
IGNORED = {"generation_config.json": ("unknown kinds", "kinds that are lists"), "adapter_config.json": ()}


def opened(path):
    options = {"dtype": "float32", "attn_implementation": "auto", "gradient_checkpointing": False, "compile": False}
    source = Pretrained(path=str(path), trust_remote_code=False, revision=None, **options)
    return source.load_model(source.load_tokenizer())


def scratch(config, tokenizer):
    options = {"tokenizer": "train", "vocabulary_size": 300, "chat_template": None, "seed": 1, "dtype": "float32"}
    source = Scratch(config=config, **options, attn_implementation="auto", gradient_checkpointing=False, compile=False)
    return source.load_model(tokenizer)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three one two three"], 300, None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A folder with a model and an adapter on it."""
    folder = tmp_path_factory.mktemp("saved")
    export.save(scratch(LLAMA, tokenizer), tokenizer, folder / "model")
    adapted = adapters.attach(opened(folder / "model"), LoraConfig(r=2, target_modules="all-linear"))
    export.save(adapted, tokenizer, folder / "adapter")
    return folder


@pytest.fixture
def copied(folders, tmp_path):
    def copy(kind):
        return shutil.copytree(folders / kind, tmp_path / "copy", dirs_exist_ok=True)

    return copy


def spoil(file, content):
    whole = file.read_bytes()
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content(whole) if callable(content) else content)


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.parametrize(
    "name",
    [
        *("model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/generation_config.json"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    ],
)
def test_a_damaged_file_is_refused(copied, name, case):
    kind, name = name.split("/")
    if case in IGNORED.get(name, ()):
        pytest.skip("says nothing that this file is asked for")
    folder = copied(kind)
    spoil(folder / name, CONTENTS[case])
    assert str(folder) in refusal(opened, folder)


@pytest.fixture
def sharded(copied):
    """A model in two files with their index."""
    folder = copied("model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file, metadata={"format": "pt"})
    weights = {name: file for file, members in parts.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return folder


def test_a_missing_shard_is_refused(sharded):
    opened(sharded)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert str(sharded) in refusal(opened, sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", "5", '{"weight_map": []}', '{"weight_map": {"a": 5}}'])
def test_a_damaged_index_is_refused(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    assert str(sharded) in refusal(opened, sharded)


@pytest.mark.parametrize("key", [*SIZES, "num_key_value_heads", "vocab_size", "head_dim", "max_position_embeddings"])
@pytest.mark.parametrize("size", [0, -1, "wide", 1.5, [], True])
def test_sizes_that_are_none_are_refused(copied, tokenizer, key, size):
    assert key in refusal(scratch, LLAMA | {key: size}, tokenizer)
    file = copied("model") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: size}))
    assert key in refusal(opened, file.parent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "3 key-value heads do not divide 4"),
        ({"head_dim": 3}, "pairs"),
        ({"attention_dropout": -1.0}, "not a dropout rate"),
        ({"hidden_act": "nope"}, "no model can be built"),
        ({"model_type": ["llama"]}, "no causal language model of that name"),
    ],
)
def test_values_that_do_not_fit_are_refused(tokenizer, change, said):
    assert said in refusal(scratch, LLAMA | change, tokenizer)


@pytest.mark.parametrize(
    "change",
    [{"base_model_name_or_path": 5}, {"base_model_name_or_path": None}, {"r": -1}, {"target_modules": 5}, {"bias": {}}],
)
def test_an_adapter_config_with_odd_values_is_refused(copied, change):
    file = copied("adapter") / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refusal(opened, file.parent)


def test_an_adapter_on_itself_or_on_another_one_is_refused(copied, folders):
    file = copied("adapter") / "adapter_config.json"
    for base in (file.parent, folders / "adapter"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
        assert "an adapter on another adapter" in refusal(opened, file.parent)


@pytest.mark.parametrize("change", [{"target_modules": "("}, {"rank_pattern": 5}, {"init_lora_weights": "nope"}])
def test_an_adapter_that_cannot_be_made_is_refused(folders, change):
    config = LoraConfig(**{"r": 2, "target_modules": "all-linear", **change})
    assert "does not fit" in refusal(adapters.attach, opened(folders / "model"), config)


def test_a_vocabulary_beyond_any_number_is_refused():
    assert "model.vocabulary_size" in refusal(train_tokenizer, ["one two"], 10**20, None)


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "a\0b", "~nobody-of-that-name/model"])
def test_a_path_that_cannot_be_is_refused(path):
    assert refusal(locate, path).startswith("model.path=")


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_one_flipped_bit_of_saved_weights_is_found(folders, tmp_path, name):
    shutil.copytree(folders / name, tmp_path / name)
    file = next((tmp_path / name).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(InputError, match=rf"is damaged: the content of {file.name}"):
        refuse_damaged(locate(str(tmp_path / name)))
    (tmp_path / name / "manifest.json").unlink()
    refuse_damaged(locate(str(tmp_path / name)))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "generation_config.json"])
def test_whatever_is_missing_of_a_saved_model_is_found(copied, name):
    folder = copied("model")
    place = locate(str(folder))
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"is damaged: {name} is missing"):
        refuse_damaged(place)
