"""What another engine is given to compute with opens again as what the policy computes with."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from alignlab.distributed.strategies import Sharding
from alignlab.models.adapters import attach
from alignlab.models.load import open_weights
from alignlab.models.locations import locate
from alignlab.rollout.weights import current_weights, initial_weights
from tests.methods.toy import make_policy
from tests.rollout.vllm.policy import POCKET

QUANTISED = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
TOKENS = torch.tensor([[5, 9, 30, 12, 41, 7, 22]])


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS).logits.float()


def pocket(**options):
    return AutoModelForCausalLM.from_pretrained(POCKET, **options)


def adapted(model, scale=0.05):
    torch.manual_seed(0)
    model = attach(model, LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(0, scale)
    return model


def opened(write, folder):
    folder.mkdir()
    write(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def first(policy):
    return initial_weights(policy, Sharding(None), AutoTokenizer.from_pretrained(POCKET))


@pytest.mark.parametrize("policy", [pocket, lambda: adapted(pocket())], ids=["full", "lora"])
def test_weights_that_lie_in_a_folder_are_not_written_again(policy):
    assert first(policy()) == str(POCKET)


def test_random_weights_are_written(tmp_path):
    policy = make_policy()
    assert torch.equal(logits(opened(first(policy), tmp_path / "first")), logits(policy))


@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 1e-4), ("int8", 0.3)])
def test_quantised_weights_are_written_as_what_they_stand_for(kind, tolerance, tmp_path):
    """4-bit weights compute in float32; 8-bit ones in 8 bits, where what they are applied to is rounded too."""
    pytest.importorskip("bitsandbytes")
    base = open_weights(locate("pocket"), "float32", "eager", quantization=QUANTISED[kind])
    expected = logits(base)
    found = opened(first(adapted(base)), tmp_path / "first")
    assert getattr(found.config, "quantization_config", None) is None
    assert (logits(found) - expected).abs().max().item() < tolerance
    written, before = found.state_dict(), pocket().state_dict()
    assert written.keys() == before.keys()
    step = 2 / 255 if kind == "int8" else 0.35
    for name, tensor in written.items():
        assert (tensor - before[name]).abs().max() <= step * before[name].abs().max(), name


def test_of_an_adapter_only_the_adapter_travels(tmp_path):
    policy = adapted(pocket())
    policy.add_adapter("reference", policy.active_peft_config)
    (tmp_path / "now").mkdir()
    current_weights(policy, Sharding(None))(tmp_path / "now")
    assert {path.name for path in (tmp_path / "now").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not list((tmp_path / "now").glob("*/")) and not (tmp_path / "now" / "model.safetensors").exists()
    assert torch.equal(logits(PeftModel.from_pretrained(pocket(), tmp_path / "now")), logits(policy))


def test_full_weights_travel_as_they_are(tmp_path):
    policy = pocket()
    with torch.no_grad():
        policy.model.layers[0].mlp.up_proj.weight.add_(0.1)
    assert torch.equal(logits(opened(current_weights(policy, Sharding(None)), tmp_path / "now")), logits(policy))
