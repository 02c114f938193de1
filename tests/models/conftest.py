"""Tiny random models of several architectures, a few milliseconds each."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignlab.types.rows import TokenRow

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


TREES = [[[3, 5]], [[0, 7], [0, 40], [0, 2]], [[4, 2, 9, 30]], [[30, 5]], [[2, 3, 4, 5]], [[1, 1]]]
"""Groups of each row: ``(prompt, completion, …)`` in tokens."""


@pytest.fixture(scope="module")
def rows():
    """Rows of every kind of group, with random tokens of which some are supervised."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for groups in TREES:
        size = sum(map(sum, groups))
        tokens = torch.randint(1, 101, (size,), generator=draw).tolist()
        supervised = (torch.rand(size, generator=draw) > 0.4).tolist()
        made.append(TokenRow(tokens=tokens, supervised=supervised, groups=groups, origin="", columns={}))
    return made


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
