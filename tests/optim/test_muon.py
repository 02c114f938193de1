"""``optimizer=muon``: Muon for matrices of hidden layers, AdamW for the rest, as one optimizer."""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.errors import InputError
from alignlab.optim.fused import make_fused
from alignlab.optim.muon import Muon, hidden_matrices
from tests.commands import QUIET, alignlab, metrics

LR, DECAY, MOMENTUM, BETAS, EPS = 0.1, 0.02, 0.9, (0.8, 0.95), 1e-8
SETTINGS = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "momentum": MOMENTUM}
SETTINGS |= {"nesterov": True, "ns_steps": 5}


def parameters(seed=0):
    """A matrix of a hidden layer, an embedding, and a vector without weight decay."""
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (5, 4), (7,))]


def made(matrix, embedding, vector):
    groups = [{"params": [embedding, matrix]}, {"params": [vector], "weight_decay": 0.0}]
    return make_fused(partial(Muon, hidden={matrix}, **SETTINGS), groups)


def give_gradients(weights, step):
    torch.manual_seed(100 + step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape)


def orthogonal(matrix):
    """Newton and Schulz's iteration, with the coefficients of Keller Jordan."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T


def test_two_updates_are_those_of_a_plain_loop_in_float64():
    weights = parameters()
    optimizer = made(*weights)
    matrix, *others = [weight.detach().double() for weight in weights]
    average, moments = torch.zeros_like(matrix), [[torch.zeros_like(one)] * 2 for one in others]
    for step in (1, 2):
        give_gradients(weights, step)
        optimizer.step()
        gradient = weights[0].grad.double()
        average = MOMENTUM * average + (1 - MOMENTUM) * gradient
        direction = orthogonal((1 - MOMENTUM) * gradient + MOMENTUM * average)
        matrix = matrix * (1 - LR * DECAY) - LR * 0.2 * 6**0.5 * direction
        for index, (weight, decay) in enumerate(zip(weights[1:], (DECAY, 0.0), strict=True)):
            gradient, (first, second) = weight.grad.double(), moments[index]
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
            moments[index] = first, second
            rate = first / (1 - BETAS[0] ** step) / ((second / (1 - BETAS[1] ** step)).sqrt() + EPS)
            others[index] = others[index] * (1 - LR * decay) - LR * rate
    torch.testing.assert_close(weights[0].double(), matrix, rtol=0, atol=2e-3)  # PyTorch iterates in bfloat16
    for ours, theirs in zip(weights[1:], others, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_a_loaded_state_goes_on_bit_for_bit():
    ours, theirs = parameters(), parameters()
    before, whole = made(*ours), made(*theirs)
    for step in (1, 2):
        give_gradients(theirs, step)
        whole.step()
    give_gradients(ours, 1)
    before.step()
    resumed = made(*ours)
    resumed.load_state_dict(before.state_dict())
    give_gradients(ours, 2)
    resumed.step()
    assert all(mine.equal(yours) for mine, yours in zip(ours, theirs, strict=True))


def test_a_resumed_run_with_lora_is_the_whole_run_bit_for_bit(tmp_path):
    words = ["train", *QUIET, "method=sft", "optimizer=muon", "peft=lora", "data.source.num_train=8"]
    words += [
        "data.source.num_validation=1",
        "data.global_batch_size=2",
        "scheduler=constant",
        "scheduler.warmup_steps=0",
    ]
    assert alignlab(*words, "trainer.max_steps=4", f"run_dir={tmp_path / 'whole'}") == 0
    assert alignlab(*words, "trainer.max_steps=2", f"run_dir={tmp_path / 'cut'}") == 0
    assert alignlab(*words, "trainer.max_steps=4", f"run_dir={tmp_path / 'cut'}", "resume=auto") == 0
    one, other = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    losses = [[row["train/loss"] for row in metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1] and losses[0][3] < losses[0][0]


def test_matrices_of_blocks_and_of_their_adapters_are_hidden():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
    whole, hidden = dict(model.named_parameters()), hidden_matrices([model])
    names = {name for name, parameter in whole.items() if parameter in hidden}
    assert names == {name for name in whole if ".layers." in name and name.endswith("proj.weight")}
    adapted = get_peft_model(model, LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "embed_tokens"]))
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    hidden = hidden_matrices([adapted])
    for name, parameter in trained.items():
        assert (parameter in hidden) == (".layers." in name and "lora_magnitude_vector" not in name), name


def test_nothing_hidden_is_refused():
    matrix, embedding, vector = parameters()
    with pytest.raises(InputError, match="none is trained"):
        Muon([embedding, vector], hidden={matrix}, **SETTINGS)
