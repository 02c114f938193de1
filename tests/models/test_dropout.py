"""A model's own dropout is off where scores are compared; that of an adapter stays."""

import json
from types import SimpleNamespace

import pytest
import torch

from alignlab.assemble import make_model_source
from alignlab.cli.composition.compose import compose
from alignlab.config import schema
from alignlab.config.target import locate
from alignlab.models.adapters import attach
from alignlab.models.dropout import rates_of_files, set_dropout
from alignlab.models.export import save

NOISY = {
    "llama": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "gpt_neox": {"attention_dropout": 0.5, "hidden_dropout": 0.5},
    "falcon": {"attention_dropout": 0.5, "hidden_dropout": 0.5, "bos_token_id": 1, "eos_token_id": 2},
    "gptj": {"attn_pdrop": 0.5, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_inner": 64},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "mixtral": {"attention_dropout": 0.5, "router_jitter_noise": 0.5},
}


def hidden(model, seed):
    torch.manual_seed(seed)
    return model(torch.arange(3, 11)[None]).logits


@torch.no_grad()
@pytest.mark.parametrize("architecture", NOISY)
def test_without_dropout_training_mode_computes_what_eval_mode_computes(tiny_model, architecture):
    model = tiny_model(architecture, implementation="eager", **NOISY[architecture]).train()
    assert not torch.equal(hidden(model, 0), hidden(model, 1))
    before = model.config.to_dict()
    set_dropout(model, 0.0)
    assert torch.equal(hidden(model, 0), hidden(model, 1))
    torch.testing.assert_close(hidden(model, 0), hidden(model.eval(), 0))
    with rates_of_files(model):
        assert model.config.to_dict() == before
    assert torch.equal(hidden(model.train(), 0), hidden(model, 1))


def test_the_saved_config_keeps_the_rates_of_its_files(tiny_model, tmp_path):
    model = tiny_model("gpt2", resid_pdrop=0.25)
    set_dropout(model, 0.0)
    save(model, SimpleNamespace(save_pretrained=lambda folder: None), tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["resid_pdrop"] == 0.25 and saved["attn_pdrop"] == 0.1
    assert model.config.resid_pdrop == 0.0


@torch.no_grad()
def test_a_rate_of_its_own_and_none(tiny_model):
    model = tiny_model("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
    set_dropout(model, None)
    assert torch.equal(hidden(model, 0), hidden(model, 1))
    set_dropout(model, 0.3)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


@pytest.mark.parametrize(("words", "rate"), [([], None), (["model.dropout=0.2"], 0.2)])
@pytest.mark.parametrize("method", ["sft", "pretrain", "dpo", "kto", "simpo", "reward_model", "grpo", "ppo"])
def test_the_rate_of_each_method(method, words, rate):
    config = schema.check(compose([f"method={method}", *words]))
    off = 0.0 if rate is None and method not in ("sft", "pretrain") else rate
    assert make_model_source(config).dropout == off
    assert make_model_source(config | {"init_from": config["model"]["path"]}).dropout == off


def test_the_dropout_of_an_adapter_stays(tiny_model):
    model = tiny_model(attention_dropout=0.5)
    model.name_or_path = "somewhere"
    set_dropout(model, 0.0)
    lora = locate("peft.LoraConfig")(lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    adapted = attach(model, lora).train()
    assert not torch.equal(hidden(adapted, 0), hidden(adapted, 1))
