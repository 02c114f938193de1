"""Random weights and trained tokenizers: the same again for the same seed and texts, and fit for each other."""

import gzip
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer

from alignlab.errors import InputError
from alignlab.models.scratch import Scratch, make_config, num_rows, train_tokenizer

TEXTS = ["A price of 1234 coins.", "A price of 77 coins, naïve 数学 🙂."] * 3
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", "num_key_value_heads": 1, **SIZES}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def scratch(config=LLAMA, **changes):
    options = {"tokenizer": "train", "vocabulary_size": 300, "chat_template": None, "seed": 1, "dtype": "float32"}
    attention = {"attn_implementation": "auto", "gradient_checkpointing": False, "compile": False}
    return Scratch(config=config, **{**options, **attention, **changes})


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS, 300, None)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weights_depend_on_the_seed_alone(tokenizer):
    torch.manual_seed(5)
    first = scratch().load_model(tokenizer).state_dict()
    torch.rand(3)
    again, other = (scratch(seed=seed).load_model(tokenizer).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_weights_are_drawn_on_the_cpu_whatever_the_default_device(tokenizer):
    """A strategy builds the model within its device; here the meta device stands for a GPU."""
    with torch.device("meta"):
        found = scratch().load_model(tokenizer).state_dict()
    assert all(
        torch.equal(found[name], tensor) for name, tensor in scratch().load_model(tokenizer).state_dict().items()
    )


def test_building_draws_nothing_from_the_global_generator(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    scratch().load_model(tokenizer)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        {"model_type": "qwen2", "num_key_value_heads": 1, **SIZES},
        {"model_type": "gemma2", "num_key_value_heads": 1, "head_dim": 8, **SIZES},
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2},
    ],
    ids=lambda config: config["model_type"],
)
def test_any_architecture_gets_the_tokenizers_vocabulary(tokenizer, config):
    model = scratch(config).load_model(tokenizer)
    ids = torch.tensor([tokenizer("12 coins").input_ids])
    assert model(input_ids=ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype(tokenizer, dtype):
    assert {p.dtype for p in scratch(dtype=dtype).load_model(tokenizer).parameters()} == {getattr(torch, dtype)}


def test_more_rows_than_tokens_may_be_asked_for(tokenizer):
    assert scratch({**LLAMA, "vocab_size": 320}).load_model(tokenizer).get_input_embeddings().num_embeddings == 320


def test_the_end_of_sequence_starts_random_even_where_it_pads(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    table = scratch().load_model(tokenizer).get_input_embeddings()
    assert table.padding_idx is None and table.weight[tokenizer.eos_token_id].any()


def test_config_faults_are_reported_together(tokenizer):
    with pytest.raises(InputError) as refusal:
        make_config({**LLAMA, "hidden_sise": 8, "vocab_size": 8}, tokenizer)
    assert "Did you mean 'hidden_size'?" in str(refusal.value) and "vocab_size=8" in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({}, "no causal language model"),
        ({**LLAMA, "hidden_size": 17}, "not a multiple"),
        ({**LLAMA, "hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_configs_that_make_no_model_are_refused(tokenizer, config, reason):
    with pytest.raises(InputError, match=reason):
        make_config(config, tokenizer)


def test_a_config_file_of_an_older_release_is_accepted(tokenizer):
    pasted = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "rope_theta": 5e5, "pad_token_id": 2}
    config = make_config({**LLAMA, **pasted, "transformers_version": "4.40.0", "eos_token_id": 99}, tokenizer)
    assert config.rope_parameters["rope_theta"] == 5e5
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, None)


def test_whole_numbers_are_floats_where_the_config_has_floats(tokenizer):
    config = make_config({"model_type": "mixtral", "router_aux_loss_coef": 100, "num_local_experts": 4}, tokenizer)
    assert isinstance(config.router_aux_loss_coef, float) and isinstance(config.num_local_experts, int)


def test_quantised_random_weights_are_refused(tokenizer):
    with pytest.raises(InputError, match="could not be trained"):
        scratch().load_model(tokenizer, quantization=object())


# --- tokenizer --------------------------------------------------------------------------------------------------------


def test_training_is_deterministic():
    first, again = (train_tokenizer(iter(TEXTS), 320, None).backend_tokenizer.to_str() for _ in range(2))
    assert first == again != train_tokenizer(["something else"] * 9, 320, None).backend_tokenizer.to_str()


@pytest.mark.parametrize(
    "text", ["  two  blanks\n\n\ttab", "日本語 ñ 🙂‍↔️", "\x00\x7f\u2028", "x=1234.50", " don't , .", ""]
)
def test_decoding_gives_back_the_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_digits_stand_one_by_one(tokenizer):
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("1234 coins 1234").input_ids)
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == list("12341234")


def test_size_and_special_tokens(tokenizer):
    assert len(tokenizer) == num_rows(tokenizer) <= 300
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    markers = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert sorted({*special, *markers}) == [0, 1, 2, 3, 4]
    assert tokenizer("<|im_start|>").input_ids == markers[:1]
    assert tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"]


def test_vocabulary_ends_where_no_pair_occurs_twice():
    assert len(train_tokenizer(["ab"], 400, None)) == 5 + 256
    assert len(train_tokenizer(["ab ab"], 400, None)) == 5 + 256 + 1


def test_markers_of_a_template_are_single_tokens():
    trained = train_tokenizer(TEXTS, 300, TEMPLATE)
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    ids = trained.apply_chat_template(messages, return_dict=False)
    names = ["<|bos|>", "<|user|>", "1", "<|eos|>", "<|assistant|>", "2", "<|eos|>"]
    assert trained.convert_ids_to_tokens(ids) == names


def test_the_tokenizer_reopens_the_same(tmp_path):
    trained = train_tokenizer(TEXTS, 300, TEMPLATE)
    trained.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again(text).input_ids for text in TEXTS] == [trained(text).input_ids for text in TEXTS]
    assert (again.chat_template, again.special_tokens_map) == (trained.chat_template, trained.special_tokens_map)


def test_load_tokenizer_trains_on_the_texts_given():
    assert len(scratch().load_tokenizer(lambda: TEXTS)) == len(train_tokenizer(TEXTS, 300, None))


@pytest.mark.parametrize("texts", [None, lambda: [], lambda: ["", ""]])
def test_nothing_to_train_on_is_refused(texts):
    with pytest.raises(InputError, match="no text"):
        scratch().load_tokenizer(texts)


def test_template_files_are_read_or_refused(tmp_path):
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    assert scratch(chat_template=str(tmp_path / "mine.jinja")).load_tokenizer(lambda: TEXTS).chat_template == TEMPLATE
    with pytest.raises(InputError, match="there is no file"):
        scratch(chat_template="absent.jinja").load_tokenizer(lambda: TEXTS)
    (tmp_path / "strict.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(InputError, match="refuses a plain dialogue"):
        scratch(chat_template=str(tmp_path / "strict.jinja")).load_tokenizer(lambda: TEXTS)


def test_a_missing_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="no tokenizer could be read"):
        scratch(tokenizer=str(tmp_path / "absent")).load_tokenizer()


def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path):
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no vocabulary"):
        scratch(tokenizer=str(tmp_path)).load_tokenizer()


@pytest.fixture(scope="module")
def unpacked(shared, tmp_path_factory):
    """The shared tokenizers, unpacked; qwen3 has the vocabulary of qwen2.5."""
    target = tmp_path_factory.mktemp("tokenizers")
    shutil.copytree(shared / "data/tokenizers", target, dirs_exist_ok=True)
    for packed in target.glob("*/tokenizer.json.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    shutil.copy(target / "qwen2.5/tokenizer.json", target / "qwen3")
    return target


@pytest.mark.parametrize("name", ["minimind", "qwen2.5", "qwen3", "smollm2"])
def test_real_tokenizers(unpacked, name):
    source = scratch({**LLAMA, "tie_word_embeddings": True}, tokenizer=str(unpacked / name))
    tokenizer = source.load_tokenizer()
    model = source.load_model(tokenizer)
    assert tokenizer.pad_token_id < model.get_input_embeddings().num_embeddings == num_rows(tokenizer)
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    ids = torch.tensor([tokenizer("Three plus four is seven. 三加四").input_ids])
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert model.get_input_embeddings().weight.grad.any()
