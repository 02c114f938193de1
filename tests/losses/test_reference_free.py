"""ORPO, CPO and SimPO against golden values and by hand: losses that look at the policy alone."""

import math

import pytest
import torch

from alignlab.losses import preference
from alignlab.losses.logps import pair_index, segment_sums, token_counts
from alignlab.losses.odds_ratio import log_odds, odds_ratio
from alignlab.losses.preference import Pairs
from alignlab.losses.simpo import simpo
from alignlab.types.loss import LossTerm
from tests.losses.golden import cases, flatten, inputs
from tests.losses.reduce import step_mean


def recorded(case):
    """Pairs, and the chosen completions' token log-probabilities, from recorded logits."""
    given = inputs(case)
    order = torch.tensor(
        [row for pair in zip(given["chosen_rows"], given["rejected_rows"], strict=True) for row in pair]
    )
    logits = given["logits"].requires_grad_()
    labels, mask = given["labels"][order][:, 1:], given["completion_mask"][order][:, 1:]
    logps = logits[order][:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    flat, sequence_ids = flatten(logps, mask)
    sums, tokens = segment_sums(flat, sequence_ids, len(order)), token_counts(sequence_ids, len(order), flat.dtype)
    index = pair_index(torch.arange(len(order)) // 2)
    zeros = torch.zeros_like(sums[index.chosen])
    counts = tokens[index.chosen], tokens[index.rejected]
    return given, logits, Pairs(sums[index.chosen], sums[index.rejected], zeros, zeros, *counts)


@pytest.mark.parametrize("case", cases("cpo"), ids=lambda case: case["id"])
def test_golden_values(case):
    config = case["config"]
    _, _, pairs = recorded(case)
    smoothing = {"label_smoothing": config["label_smoothing"]}
    losses = {
        "sigmoid": lambda: preference.sigmoid(pairs, beta=config["beta"], **smoothing),
        "hinge": lambda: preference.hinge(pairs, beta=config["beta"]),
        "ipo": lambda: preference.ipo(pairs, beta=config["beta"]),
        "simpo": lambda: simpo(
            pairs, beta=config["beta"], margin=config["simpo_gamma"], alpha=config["alpha"], **smoothing
        ),
    }[config["loss_type"]]()
    terms = LossTerm(losses, "pairs"), preference.sft(pairs, beta=1.0) * config["cpo_alpha"]
    counts = {"sequences": 2 * len(losses), "groups": len(losses), "chosen_tokens": pairs.chosen_tokens.sum().item()}
    loss = step_mean(*terms, **counts)
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-9)


@pytest.mark.parametrize("case", cases("orpo"), ids=lambda case: case["id"])
def test_golden_odds_ratio(case):
    """The peer's likelihood term covers the prompt too; ours (``sft``) does not, so it is put together here."""
    given, logits, pairs = recorded(case)
    chosen = given["chosen_rows"].tolist()
    attended = given["attention_mask"][chosen][:, 1:].bool()
    labels = given["input_ids"][chosen][:, 1:]
    logps = logits[chosen][:, :-1].log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    loss = -logps[attended].mean() + case["config"]["beta"] * odds_ratio(pairs).mean()
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=max(case["tol"], 1e-6))


def make_pairs(chosen, rejected):
    zeros = torch.zeros_like(chosen)
    return Pairs(chosen, rejected, zeros, zeros, zeros + 2, zeros + 4)


def test_odds_ratio_by_hand():
    """Per token p = e^-1 / 2 → log-probabilities -1/2 and -1: odds e^-.5/(1-e^-.5) and e^-1/(1-e^-1)."""
    odds = [math.exp(-p) / (1 - math.exp(-p)) for p in (0.5, 1.0)]
    found = odds_ratio(make_pairs(torch.tensor([-1.0]).double(), torch.tensor([-4.0]).double()))
    assert found.item() == pytest.approx(math.log(1 + odds[1] / odds[0]), rel=1e-12)


def test_simpo_by_hand():
    """Per token -1/2 and -1, β = 2, γ = 0.5: -log σ(1 - 0.5)."""
    pairs = make_pairs(torch.tensor([-1.0]).double(), torch.tensor([-4.0]).double())
    found = simpo(pairs, beta=2.0, margin=0.5, alpha=0.0, label_smoothing=0.0)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-0.5)), rel=1e-12)
    bent = simpo(pairs, beta=2.0, margin=0.5, alpha=1e-7, label_smoothing=0.0)
    assert bent.item() == pytest.approx(found.item(), rel=1e-5)


def test_smoothed_simpo_by_hand():
    """The same logit 1/2, with a tenth of the labels assumed wrong."""
    pairs = make_pairs(torch.tensor([-1.0]).double(), torch.tensor([-4.0]).double())
    found = simpo(pairs, beta=2.0, margin=0.5, alpha=0.0, label_smoothing=0.1)
    right, wrong = math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(0.5))
    assert found.item() == pytest.approx(0.9 * right + 0.1 * wrong, rel=1e-12)


def test_log_odds_stay_finite_for_a_sure_token():
    logps = torch.tensor([0.0, -1e-9, -50.0], dtype=torch.float64, requires_grad=True)
    values = log_odds(logps)
    values.sum().backward()
    assert values.isfinite().all()
    assert logps.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss", [odds_ratio, lambda pairs: simpo(pairs, beta=2.0, margin=0.5, alpha=0.25, label_smoothing=0.1)]
)
def test_gradients(loss):
    chosen, rejected = (-torch.rand(4, dtype=torch.float64) * 5 - 0.1 for _ in range(2))
    chosen.requires_grad_(), rejected.requires_grad_()
    assert torch.autograd.gradcheck(lambda c, r: loss(make_pairs(c, r)), (chosen, rejected))
