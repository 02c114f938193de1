"""A method and its reference: equal before the first step, and afterwards where its word says that it is."""

import dataclasses
import functools
import logging

import lightning
import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignlab.callbacks.checkpoint import Checkpoint
from alignlab.errors import InputError
from alignlab.run_folder.storage import open_checkpoint
from tests.methods.slow import completions
from tests.methods.toy import METHODS, fit, make_loader, make_method, make_policy, rows_for

DECAY, EVERY = 0.9, 2  # of the toy methods
NAMES = ("dpo", "group_dpo", "kto")


def make_lora():
    """The tiny policy with an adapter of an earlier stage."""
    policy = get_peft_model(make_policy(), LoraConfig(r=2, target_modules="all-linear"))
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return policy


def make_other(path):
    """Weights of a path that are not the policy's."""
    policy = make_policy()
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.5)
    return policy


POLICIES = {"full": make_policy, "lora": make_lora}
IN_16_BITS = {"bf16": lambda: make_policy().to(torch.bfloat16)}


@pytest.fixture
def with_reference(monkeypatch):
    """``with_reference(name, word, policy="full")``: a toy method held against another reference."""

    def make(name, word, policy="full", **options):
        plain = make_method(name, policy=(POLICIES | IN_16_BITS)[policy], lr=0.05, **options).factories
        return METHODS[name](reference=word, factories=dataclasses.replace(plain, open_model=make_other))

    return make


class Spy(lightning.Callback):
    """Keeps what trains, and what of the reference moves, after every step."""

    def __init__(self):
        self.trained, self.reference = [], []

    def on_train_start(self, trainer, method):
        self._look(method)

    def on_train_batch_end(self, trainer, method, *_):
        self._look(method)

    def _look(self, method):
        tensors = [p for p in method.policy.parameters() if p.requires_grad]
        if method.reference.weights.model is not None:
            beside = list(method.reference.weights.model.parameters())
        else:
            beside = [p for name, p in method.policy.named_parameters() if ".reference." in name]
        self.trained.append(torch.cat([p.detach().flatten() for p in tensors]))
        self.reference.append(torch.cat([p.detach().flatten() for p in beside]) if beside else None)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("word", ["initial", "ema", "synchronised"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_log_ratio_before_the_first_step_is_zero(with_reference, caplog, name, word, policy):
    method = with_reference(name, word, policy)
    with caplog.at_level(logging.INFO, "alignlab"):
        fit(method, make_loader(rows_for(name), 4, num_steps=1), weights=False)
    (line,) = [record for record in caplog.records if "log-ratio" in record.message]
    assert float(line.args[0]) < 1e-5
    assert any(
        f"reference: {word}, fingerprint {method.reference.fingerprint}" == record.message for record in caplog.records
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_first_loss_is_that_of_equal_policies(with_reference, name):
    """With all log-ratios 0: ln 2 for a pair, the margin 1 for a group, λ (1 - σ(0)) for a verdict."""
    rows = rows_for(name)
    _, steps = fit(with_reference(name, "initial"), make_loader(rows, 4, num_steps=1, order="as_is"))
    verdicts = [row.columns["desirable"] for row in rows][:8] if name == "kto" else []
    weights = [1.0 if desirable else 1.3 for desirable in verdicts]
    expected = {"dpo": 0.693147, "group_dpo": 1.0, "kto": 0.5 * sum(weights) / 8}
    assert steps[0]["train/loss"] == pytest.approx(expected[name], abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("word", ["initial", "ema", "synchronised"])
def test_a_reference_that_differs_stops_the_run(with_reference, word, policy):
    """One weight of the policy is another once the reference has been made: the error says by how much, and what."""
    method = with_reference("dpo", word, policy)
    make = method.reference.build

    def build(whole):
        make(whole)
        with torch.no_grad():
            next(p for p in whole.parameters() if p.requires_grad).add_(0.5)

    method.reference.build = build
    with pytest.raises(InputError) as refused:
        fit(method, make_loader(rows_for("dpo"), 4, num_steps=1))
    assert f"method.reference={word}" in str(refused.value)
    assert "differ by" in str(refused.value) and method.reference.fingerprint in str(refused.value)


@pytest.mark.parametrize("word", ["base", "somewhere"])
def test_a_reference_that_is_meant_to_differ_is_only_reported(with_reference, caplog, word):
    """The base under an adapter, or a path: the log tells the difference, and training goes on."""
    method = with_reference("dpo", word, "lora")
    with caplog.at_level(logging.INFO, "alignlab"):
        _, steps = fit(method, make_loader(rows_for("dpo"), 4, num_steps=2), weights=False)
    (line,) = [record for record in caplog.records if "log-ratio" in record.message]
    assert float(line.args[0]) > 0.01
    assert len(steps) == 2


def test_the_reported_difference_is_per_token_of_each_completion(with_reference, caplog):
    """The mean over completions of |log π - log π_ref| / tokens, summed one completion at a time in float64."""
    with caplog.at_level(logging.INFO, "alignlab"):
        loader = make_loader(rows_for("dpo"), 8, num_steps=1, order="as_is")
        fit(with_reference("dpo", "somewhere"), loader, weights=False)
    both = zip(completions("dpo"), completions("dpo", functools.partial(make_other, "")), strict=True)
    pairs = [pair for ours, theirs in both for pair in zip(ours, theirs, strict=True)]
    expected = sum(abs(logps - other) / tokens for (logps, tokens), (other, _) in pairs) / len(pairs)
    (line,) = [record for record in caplog.records if "log-ratio" in record.message]
    assert line.args[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_reference_the_rewards_are_those_of_the_policy_alone(with_reference, name):
    method = with_reference(name, "none")
    _, steps = fit(method, make_loader(rows_for(name), 4, num_steps=2))
    assert method.reference.weights is None
    assert steps[0]["rewards/chosen"] < -1, "0.5 times a log-probability of a completion"


@pytest.mark.parametrize("policy", POLICIES)
def test_an_average_follows_as_computed_by_hand(with_reference, policy):
    """After each step: 0.9 of what it was, 0.1 of the policy."""
    spy = Spy()
    fit(with_reference("dpo", "ema", policy), make_loader(rows_for("dpo"), 4), callbacks=[spy], weights=False)
    expected = spy.trained[0]
    assert torch.equal(spy.reference[0], expected)
    for trained, found in zip(spy.trained[1:], spy.reference[1:], strict=True):
        expected = DECAY * expected + (1 - DECAY) * trained
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
    assert not torch.equal(spy.reference[-1], spy.reference[0])


def test_an_average_in_16_bits_follows_updates_below_their_precision(with_reference):
    """It is the average in float64, rounded once; 0.001 of a difference alone would be rounded off."""
    spy, decay = Spy(), 0.999
    method = with_reference("dpo", "ema", "bf16")
    method.reference.settings = dataclasses.replace(method.reference.settings, reference_decay=decay)
    fit(method, make_loader(rows_for("dpo"), 4, num_steps=20), callbacks=[spy], weights=False)
    expected = spy.trained[0].double()
    for trained in spy.trained[1:]:
        expected = decay * expected + (1 - decay) * trained.double()
    found, differs = spy.reference[-1], expected.bfloat16() != spy.reference[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=2**-8)
    averages = torch.cat([average.flatten() for average in method.reference.weights.float32_averages])
    torch.testing.assert_close(averages.double(), expected, atol=1e-7, rtol=1e-6)
    assert torch.equal(found, averages.bfloat16())
    assert differs.float().mean() > 0.1 and not torch.equal(found, spy.reference[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_an_average_in_32_bits_needs_no_other(with_reference, policy):
    method = with_reference("dpo", "ema", policy)
    fit(method, make_loader(rows_for("dpo"), 4, num_steps=1), weights=False)
    assert not method.reference.weights.float32_averages


def test_an_average_in_16_bits_is_resumed_bit_for_bit(with_reference, tmp_path):
    def train(folder, **options):
        method = with_reference("dpo", "ema", "bf16")
        saves = Checkpoint(folder=folder, every_n_steps=2, every_n_epochs=None, keep_last=9, additions=())
        fit(method, make_loader(rows_for("dpo"), 4), callbacks=[saves], enable_checkpointing=True, **options)
        return {name: tensor.clone() for name, tensor in method.state_dict().items()}

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "resumed", resume=open_checkpoint(tmp_path / "whole" / "step-00000002").state)
    assert any("float32_averages" in name for name in whole) and whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_synchronised_reference_is_the_policy_of_every_second_step(with_reference, policy):
    """Of steps 0 to 4 it is the policy of 0, 0, 2, 2, 4."""
    spy = Spy()
    fit(with_reference("dpo", "synchronised", policy), make_loader(rows_for("dpo"), 4), callbacks=[spy], weights=False)
    for step, found in enumerate(spy.reference):
        assert torch.equal(found, spy.trained[step - step % EVERY]), step
    assert not torch.equal(spy.trained[1], spy.trained[2])


@pytest.mark.parametrize("word", ["initial", "base"])
def test_a_reference_that_stands_still_does(with_reference, word):
    spy = Spy()
    fit(with_reference("group_dpo", word), make_loader(rows_for("group_dpo"), 4), callbacks=[spy], weights=False)
    assert all(torch.equal(found, spy.trained[0]) for found in spy.reference)
    assert not torch.equal(spy.trained[0], spy.trained[-1])


@pytest.mark.parametrize(("word", "carried"), [("ema", True), ("synchronised", True), ("initial", False)])
def test_checkpoints_carry_what_moves_whatever_the_method_calls_it(with_reference, word, carried):
    """A model of its own by the name of the attribute, an adapter of the policy by its own name."""
    method = with_reference("dpo", word)
    method.anchor = method.reference
    del method.reference
    assert method.carries("anchor.weights.model.lm_head.weight") == carried
    assert method.carries("policy.layers.0.lora_A.reference.weight") == carried
    assert not method.carries("policy.layers.0.lora_A.default.weight")
