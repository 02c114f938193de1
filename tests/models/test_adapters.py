"""Adapters: which kinds fit, what trains, what is refused, and the gradient census of the first step."""

import peft
import pytest
import torch
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
)
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from alignlab.errors import InputError
from alignlab.models import adapters

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
KINDS = {
    "lora": lambda: LoraConfig(r=2, target_modules="all-linear"),
    "rslora": lambda: LoraConfig(r=2, target_modules="all-linear", use_rslora=True),
    "dora": lambda: LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "ia3": lambda: IA3Config(target_modules="all-linear", feedforward_modules=[]),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=3),
    "llama_adapter": lambda: AdaptionPromptConfig(adapter_len=3, adapter_layers=2),
}
QUANTIZATIONS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def base(tmp_path):
    """Gives tiny saved weights, opened again."""

    def build(model_type="llama", dtype="float32", quantization=None, **keys):
        keys = {"vocab_size": 32, "num_key_value_heads": 1, **SIZES, **keys}
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **keys)).save_pretrained(tmp_path / "base")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype, quantization_config=quantization)

    return build


def backward(model):
    model.train()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_trains_and_in_float32(base, kind):
    model = adapters.attach(base(), KINDS[kind]())
    sizes = adapters.trainable(model)
    assert sizes and sum(sizes.values()) < 0.5 * sum(p.numel() for p in model.parameters())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_gives_the_same_adapter_on_every_device(base, kind):
    """A strategy builds the model within its device; here the meta device stands for a GPU."""
    found = []
    for device in ("meta", "cpu"):
        policy = base()
        torch.manual_seed(3)
        with torch.device(device):
            found.append(adapters.attach(policy, KINDS[kind]()).state_dict())
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prefix"])
def test_the_adapter_stays_float32_on_a_bfloat16_base(base, kind):
    model = backward(adapters.attach(base(dtype="bfloat16"), KINDS[kind]()))
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2"])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"llama_adapter"}))
def test_kinds_fit_other_architectures(base, model_type, kind):
    model = backward(adapters.attach(base(model_type), KINDS[kind]()))
    assert adapters.zero_gradients(model) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_step1_gradient_census(base, kind, checkpointing):
    model = base()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if checkpointing and kind == "prefix":
        with pytest.raises(InputError, match="gradient checkpointing"):
            adapters.attach(model, KINDS[kind]())
        return
    assert adapters.zero_gradients(backward(adapters.attach(model, KINDS[kind]()))) == []


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_step1_gradient_census_on_a_quantised_base(base, name):
    pytest.importorskip("bitsandbytes")
    model = base(quantization=BitsAndBytesConfig(**QUANTIZATIONS[name]))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert adapters.zero_gradients(backward(adapters.attach(model, KINDS["lora"]()))) == []


def test_census_names_what_got_no_gradient(base):
    model = adapters.attach(base(), KINDS["lora"]())
    everything = adapters.zero_gradients(model)
    assert everything and all("lora_B" in name for name in everything)  # A is excused only as long as B is zero
    backward(model)
    silenced = next(name for name in adapters.trainable(model) if "q_proj.lora_B" in name)
    model.get_parameter(silenced).grad.zero_()
    assert adapters.zero_gradients(model) == [silenced]


@pytest.mark.parametrize("kind", [peft.LoHaConfig, peft.LoKrConfig, peft.VeraConfig, peft.RandLoraConfig])
def test_in_the_second_step_every_kind_has_gradients(base, kind):
    model = adapters.attach(base(), kind(target_modules="all-linear"))
    missing = adapters.zero_gradients(backward(model))
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    model.zero_grad()
    assert missing and adapters.zero_gradients(backward(model), among=missing) == []


def test_an_adapter_that_needs_a_call_in_each_step_is_refused(base):
    with pytest.raises(InputError, match="peft=lora"):
        adapters.attach(base(), peft.AdaLoraConfig(target_modules="all-linear", total_step=10))


def test_census_does_not_excuse_lora_a_once_b_is_trained(base):
    model = adapters.attach(base(), KINDS["lora"]())
    name = next(name for name in adapters.trainable(model) if "lora_A" in name)
    with torch.no_grad():
        model.get_parameter(name.replace("lora_A", "lora_B")).fill_(1.0)
    assert name in adapters.zero_gradients(model)


def test_census_of_full_weights(base):
    model = base()
    model.lm_head.weight.requires_grad_(False)
    backward(model)
    assert adapters.zero_gradients(model) == []
    assert "lm_head.weight" not in adapters.trainable(model)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
        LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ],
)
def test_adapting_one_end_of_tied_weights_is_refused(base, config):
    with pytest.raises(InputError, match=r"lm_head|embed_tokens"):
        adapters.attach(base(tie_word_embeddings=True), config)


def test_adapting_untied_ends_is_admitted(base):
    model = adapters.attach(base(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    assert any("lm_head" in name for name in adapters.trainable(model))


@pytest.mark.parametrize(
    ("kind", "keys", "reason"),
    [
        ("llama_adapter", {"model_type": "qwen2"}, "qwen2"),
        ("llama_adapter", {"dtype": "bfloat16"}, "16 bits"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(base, kind, keys, reason):
    with pytest.raises(InputError, match=reason):
        adapters.attach(base(**keys), KINDS[kind]())


def test_unknown_target_is_refused(base):
    with pytest.raises(InputError, match="q_porj"):
        adapters.attach(base(), LoraConfig(target_modules=["q_porj"]))


def test_second_adapter_is_refused(base):
    with pytest.raises(InputError, match="already carries"):
        adapters.attach(adapters.attach(base(), KINDS["lora"]()), KINDS["ia3"]())


def test_adapter_on_random_weights_is_refused():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", vocab_size=32, **SIZES))
    with pytest.raises(InputError, match="random weights"):
        adapters.attach(model, KINDS["lora"]())


def test_the_config_given_is_left_unchanged(base):
    config = KINDS["lora"]()
    adapters.attach(base(), config)
    assert config.target_modules == "all-linear" and config.task_type is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_trains_on(base, kind, tmp_path):
    first = adapters.attach(base(), KINDS[kind]())
    first.save_pretrained(tmp_path / "adapter")
    second = adapters.reattach(base(), str(tmp_path / "adapter"))
    assert adapters.trainable(second) == adapters.trainable(first)
    assert adapters.zero_gradients(backward(second)) == []


def test_an_adapter_of_another_model_is_refused(base, tmp_path):
    adapters.attach(base(), KINDS["lora"]()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="does not fit"):
        adapters.reattach(base(hidden_size=32), str(tmp_path / "adapter"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # PEFT, of patterns that fit no module
@pytest.mark.parametrize(("model_type", "left_out"), [("gpt_oss", True), ("mixtral", False), ("llama", False)])
def test_experts_that_stay_frozen_are_said(tiny_model, model_type, left_out, caplog):
    model = tiny_model(model_type, implementation="eager")
    model.name_or_path = "somewhere"
    with caplog.at_level("INFO"):
        adapters.attach(model, KINDS["lora"]())
    assert ("experts.gate_up_proj" in caplog.text) == left_out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["mlp.experts.gate_up_proj"], "2 tensors of experts, such as model.layers.0.mlp.experts.down_proj;"),
        (["layers.0.mlp.experts.gate_up_proj"], "3 tensors of experts"),
        (["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], None),
    ],
)
def test_experts_beside_those_that_are_asked_for_are_said(tiny_model, asked, said, caplog):
    model = tiny_model("gpt_oss", implementation="eager")
    model.name_or_path = "somewhere"
    with caplog.at_level("INFO"):
        adapters.attach(model, LoraConfig(r=2, target_modules=["q_proj"], target_parameters=asked))
    assert (said in caplog.text) if said else "not adapted" not in caplog.text
