"""``model.activation_offloading``: the same loss and gradients, with what the decoder keeps in host memory."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.models import activation_offloading as offloading
from alignlab.models.activation_offloading import offload_activations
from tests.commands import QUIET, alignlab, metrics

IDS = torch.arange(60).reshape(2, 30) % 16


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, attention_dropout=0.1, **sizes)).train()


@pytest.fixture
def copies(monkeypatch):
    """Tensors that were copied to host memory, in order."""
    made, to_host = [], offloading._to_host

    def noted(tensor, weights):
        kept = to_host(tensor, weights)
        made.extend([tensor] if isinstance(kept, offloading.Offloaded) else [])
        return kept

    monkeypatch.setattr(offloading, "_to_host", noted)
    return made


def trained(model):
    torch.manual_seed(1)  # of the dropout
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_equal_bit_for_bit(model, copies, checkpointing):
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    offloaded = copy.deepcopy(model)
    offload_activations(offloaded)
    loss, gradients = trained(model)
    assert not copies
    found, others = trained(offloaded)
    assert found.equal(loss)
    assert all(one.equal(other) for one, other in zip(gradients, others, strict=True))
    weights = {parameter.untyped_storage().data_ptr() for parameter in offloaded.parameters()}
    assert copies and not weights & {tensor.untyped_storage().data_ptr() for tensor in copies}
    inputs = [tensor for tensor in copies if tensor.shape == (2, 30, 32)]
    assert len(inputs) >= 3 and (len(copies) < 10) == checkpointing  # with it the inputs of the blocks, and little else


def test_nothing_is_copied_without_gradients_or_outside_the_decoder(model, copies):
    offload_activations(model)
    with torch.no_grad():
        model(input_ids=IDS)
    (torch.randn(64, 64, requires_grad=True) ** 2).sum().backward()
    with pytest.raises(ValueError, match="exactly one"):  # raised within the decoder
        model(input_ids=IDS, inputs_embeds=3)
    (torch.randn(64, 64, requires_grad=True) ** 2).sum().backward()
    assert not copies


def test_a_run_with_an_adapter_offloads(tmp_path, copies):
    words = [*QUIET, "method=sft", "peft=lora", "trainer.max_steps=1", "data.source.num_train=8", f"run_dir={tmp_path}"]
    assert alignlab("train", *words, "data.source.num_validation=1", "model.activation_offloading=true") == 0
    assert copies and len(metrics(tmp_path)) == 1
