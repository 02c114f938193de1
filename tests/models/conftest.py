"""Tiny random models of several architectures, a few milliseconds each."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"bos_token_id": 1, "eos_token_id": 2},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.fixture(scope="session")
def tiny_model():
    """``tiny_model(model_type, **config)`` makes a model with weights large enough that every token matters."""

    def make(model_type="llama", implementation="packed", **changes):
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        options = {**sizes, "intermediate_size": 64, "vocab_size": 101, "pad_token_id": 0}
        config = AutoConfig.for_model(model_type, **{**options, **ARCHITECTURES.get(model_type, {}), **changes})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        return model.eval()

    return make
