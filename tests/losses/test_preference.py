"""Pair losses: golden values, hand-worked numbers, limits and gradients."""

import inspect
import math
from functools import partial

import pytest
import torch

from alignlab.losses import divergence, preference
from alignlab.losses.logps import desensitised_sums, pair_index, segment_sums, token_counts
from alignlab.losses.preference import Pairs, wpo_weights
from alignlab.methods.pairs import pair_term
from tests.losses.golden import cases, flatten, inputs
from tests.losses.reduce import step_mean

LOSSES = {
    "sigmoid": partial(preference.sigmoid, label_smoothing=0.0),
    "sigmoid_norm": preference.sigmoid_norm,
    "robust": partial(preference.robust, label_smoothing=0.1),
    "ipo": preference.ipo,
    "hinge": preference.hinge,
    "exo_pair": partial(preference.exo_pair, label_smoothing=0.001),
    "nca_pair": preference.nca_pair,
    "bco_pair": preference.bco_pair,
    "sppo_hard": preference.sppo_hard,
    "aot": partial(preference.aot, label_smoothing=0.0),
    "aot_unpaired": partial(preference.aot_unpaired, label_smoothing=0.0),
    "apo_zero": preference.apo_zero,
    "apo_down": preference.apo_down,
    "discopop": partial(preference.discopop, temperature=0.05),
    "sft": preference.sft,
}
DIVERGENCES = {
    "reverse_kl": divergence.reverse_kl,
    "forward_kl": divergence.forward_kl,
    "js_divergence": divergence.js_divergence,
    "alpha_divergence": partial(divergence.alpha_divergence, alpha=0.5),
}
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")

# The peer's ``sigmoid`` takes no notice of label smoothing; ours is the conservative loss, compared as dpo.cdpo.
NOT_SHARED = {"dpo.sigmoid.label_smoothing0.1"}


def golden_loss(case, token_logps, given):
    """Our losses on the recorded inputs of a DPO case."""
    config = {"loss_type": ["sigmoid"], "ld_alpha": None, "f_divergence_type": "reverse_kl"} | case["config"]
    mask = given["completion_mask_shifted"]
    num_pairs, num_sequences = len(mask) // 2, len(mask)
    # Recorded rows are all chosen, then all rejected; ours stand pair by pair.
    order = torch.arange(num_sequences).view(2, num_pairs).T.flatten()
    flat, sequence_ids = flatten(token_logps[order], mask[order])
    reference, _ = flatten(given["ref_per_token_logps"][order], mask[order])
    index = pair_index(torch.arange(num_sequences) // 2)
    alpha = 1.0 if config["ld_alpha"] is None else config["ld_alpha"]
    tokens = token_counts(sequence_ids, num_sequences, flat.dtype)
    pairs = Pairs(
        *desensitised_sums(flat, sequence_ids, num_sequences, index, alpha),
        *desensitised_sums(reference, sequence_ids, num_sequences, index, alpha),
        tokens[index.chosen],
        tokens[index.rejected],
        divergence=DIVERGENCES[config["f_divergence_type"]],
    )
    total = torch.zeros(())
    weights = config.get("loss_weights") or [1.0] * len(config["loss_type"])
    for name, weight in zip(config["loss_type"], weights, strict=True):
        loss = LOSSES[name]
        smoothing = {"label_smoothing": config["label_smoothing"]} if name in SMOOTHED else {}
        per_pair = loss(pairs, beta=config["beta"], **smoothing)
        if config.get("use_weighting"):
            collisions, _ = flatten(given["log_sum_sq_probs"][order], mask[order])
            likely = wpo_weights(flat, collisions, sequence_ids, num_sequences)
            per_pair = per_pair * (likely[index.chosen] + likely[index.rejected]).exp()
        counts = {"sequences": num_sequences, "groups": num_pairs, "chosen_tokens": tokens[index.chosen].sum().item()}
        total = total + weight * step_mean(pair_term(per_pair), **counts)
    return total


@pytest.mark.parametrize("case", [c for c in cases("dpo") if c["id"] not in NOT_SHARED], ids=lambda case: case["id"])
def test_golden_values(case):
    given = inputs(case)
    token_logps = given["per_token_logps"].requires_grad_()
    loss = golden_loss(case, token_logps, given)
    tolerance = max(case["tol"], 1e-9)
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=max(tolerance, 1e-9), abs=tolerance)
    if "grad" in case["expected"]:
        (gradient,) = torch.autograd.grad(loss, token_logps)
        expected = torch.tensor(case["expected"]["grad"], dtype=torch.float64)
        mask = given["completion_mask_shifted"].bool()
        assert torch.allclose(gradient[mask], expected[mask], rtol=tolerance, atol=tolerance)


def make_pairs(chosen, rejected, **changes):
    zeros = torch.zeros_like(chosen)
    fields = {"reference_chosen": zeros, "reference_rejected": zeros, "chosen_tokens": zeros + 2} | changes
    fields = {"rejected_tokens": zeros + 4} | fields
    return Pairs(chosen, rejected, **fields)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # chosen score -1, rejected score -3, β = 0.5: δ = 2, βδ = 1, per token δ = -0.5 + 0.75 = 0.25.
        ("sigmoid", math.log(1 + math.exp(-1))),
        ("sigmoid_norm", math.log(1 + math.exp(-0.125))),
        ("hinge", 0.0),
        ("ipo", (0.25 - 1) ** 2),
        ("sppo_hard", (-1 - 1) ** 2 + (-3 + 1) ** 2),
        ("apo_zero", 1 / (1 + math.exp(-0.5)) + 1 / (1 + math.exp(1.5))),
        ("apo_down", 1 / (1 + math.exp(0.5)) + 1 / (1 + math.exp(1))),
        ("sft", 1.0),
    ],
)
def test_worked_by_hand(name, expected):
    pairs = make_pairs(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64))
    assert pair_term(LOSSES[name](pairs, beta=0.5)).losses.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients(name, kind):
    torch.manual_seed(0)
    chosen, rejected = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    references = torch.randn(2, 4, dtype=torch.float64)
    fields = {"reference_chosen": references[0], "reference_rejected": references[1]}

    def loss(chosen, rejected):
        pairs = make_pairs(chosen, rejected, divergence=DIVERGENCES[kind], **fields)
        return pair_term(LOSSES[name](pairs, beta=0.3)).losses

    assert torch.autograd.gradcheck(loss, (chosen, rejected))


def test_every_loss_pulls_the_pair_apart():
    """At equal scores, the gradient raises the chosen or lowers the rejected, and never the other way in sum."""
    for name in LOSSES.keys() - {"sft", "discopop"}:  # discopop has a bump at zero: its blend turns there
        chosen, rejected = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        LOSSES[name](make_pairs(chosen, rejected), beta=0.5).sum().backward()
        assert (rejected.grad - chosen.grad > 0).all(), name


@pytest.mark.parametrize("name", ["sigmoid", "robust"])
def test_without_smoothing_it_is_plain(name):
    chosen, rejected = torch.randn(2, 5, dtype=torch.float64)
    pairs = make_pairs(chosen, rejected)
    loss = getattr(preference, name)(pairs, beta=0.2, label_smoothing=0.0)
    assert torch.allclose(loss, torch.log1p(torch.exp(-0.2 * (chosen - rejected))), rtol=1e-12)


def test_pairs_of_ragged_trees():
    """Trees of 1 + 2, 1 + 0 and 1 + 1 completions give pairs (0, 1), (0, 2) and (4, 5)."""
    index = pair_index(torch.tensor([0, 0, 0, 1, 2, 2]))
    assert index.chosen.tolist() == [0, 0, 4]
    assert index.rejected.tolist() == [1, 2, 5]


def test_desensitised_sums_by_a_slow_loop():
    torch.manual_seed(1)
    counts = [3, 5, 1, 4]
    sequence_ids = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    logps = torch.randn(sum(counts), dtype=torch.float64, requires_grad=True)
    index = pair_index(torch.tensor([0, 0, 0, 0]))
    chosen, rejected = desensitised_sums(logps, sequence_ids, 4, index, 0.3)
    for pair, (one, other) in enumerate(zip(index.chosen.tolist(), index.rejected.tolist(), strict=True)):
        shared = min(counts[one], counts[other])
        for found, sequence in ((chosen[pair], one), (rejected[pair], other)):
            values = logps[sequence_ids == sequence]
            expected = sum(v if place < shared else 0.3 * v for place, v in enumerate(values))
            assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    whole = desensitised_sums(logps, sequence_ids, 4, index, 1.0)[0]
    assert torch.allclose(whole, segment_sums(logps, sequence_ids, 4)[index.chosen], rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: desensitised_sums(x, sequence_ids, 4, index, 0.3), (logps,))


def test_every_pair_loss_takes_pairs_and_beta():
    for name in LOSSES:
        parameters = list(inspect.signature(getattr(preference, name)).parameters)
        assert parameters[:2] == ["pairs", "beta"]


EXPONENTIALS = {
    "forward": divergence.forward_kl,
    "alpha": partial(divergence.alpha_divergence, alpha=0.3),
    "alpha above 1": partial(divergence.alpha_divergence, alpha=2.5),
}


@pytest.mark.parametrize("score", EXPONENTIALS.values(), ids=EXPONENTIALS)
@pytest.mark.parametrize("ratio", [-400.0, -100.0, -31.0, 31.0, 100.0, 400.0])
def test_scores_of_long_completions_are_finite_and_ordered(score, ratio):
    log_ratio = torch.tensor([ratio, 0.0], requires_grad=True)
    scores = score(log_ratio)
    gradient = torch.autograd.grad(scores.sum(), log_ratio)[0]
    assert scores.isfinite().all() and gradient.isfinite().all() and (gradient >= 0).all()
    assert (scores[0] < scores[1]) == (ratio < 0)


def test_scores_are_the_exponentials_where_these_have_values():
    log_ratio = torch.linspace(-29, 29, 101, dtype=torch.float64)
    assert torch.allclose(divergence.forward_kl(log_ratio), -torch.exp(-log_ratio), rtol=1e-12)
    found = divergence.alpha_divergence(log_ratio, alpha=0.3)
    assert torch.allclose(found, (torch.exp(-0.7 * log_ratio) - 1) / -0.7, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
def test_discopop_is_finite_for_large_margins(temperature):
    chosen = torch.tensor([-500.0, -50.0, 0.0, 50.0, 500.0], requires_grad=True)
    zeros, ones = torch.zeros(5), torch.ones(5)
    losses = preference.discopop(Pairs(chosen, zeros, zeros, zeros, ones, ones), beta=1.0, temperature=temperature)
    gradient = torch.autograd.grad(losses.sum(), chosen)[0]
    assert losses.isfinite().all() and gradient.isfinite().all()


def test_alpha_divergences_by_hand():
    """1 is the reverse divergence, 0 the forward (up to the constant 1, which cancels), 2 gives u - 1."""
    log_ratio = torch.tensor([-2.0, -0.1, 0.0, 0.3, 3.0], dtype=torch.float64)
    assert torch.equal(divergence.alpha_divergence(log_ratio, alpha=1.0), log_ratio)
    assert torch.allclose(divergence.alpha_divergence(log_ratio, alpha=0.0), divergence.forward_kl(log_ratio) + 1)
    assert torch.allclose(divergence.alpha_divergence(log_ratio, alpha=2.0), log_ratio.exp() - 1)


def test_desensitised_sums_of_short_completions_after_long_ones_stay_exact():
    """After 40000 tokens of -2.3 nats, numbers of single precision are 0.008 apart."""
    token_logps, sequence_ids = torch.full((40_002,), -2.3), torch.tensor([0] * 20_000 + [1] * 20_000 + [2, 3])
    token_logps[-2:] = torch.tensor([-0.3, -0.1])
    found = desensitised_sums(token_logps, sequence_ids, 4, pair_index(torch.tensor([0, 0, 1, 1])), 1.0)
    assert found[0].tolist() == pytest.approx([-46_000, -0.3], rel=1e-6)
    assert found[1].tolist() == pytest.approx([-46_000, -0.1], rel=1e-6)


def test_wpo_weights_are_means_and_zero_for_a_completion_without_tokens():
    """Excesses of 1, 3 and 0.5 nats; the second completion has no token."""
    logps, collisions = torch.tensor([-1.0, -2.0, -1.5]), torch.tensor([-2.0, -5.0, -2.0])
    assert wpo_weights(logps, collisions, torch.tensor([0, 0, 2]), 3).tolist() == [2.0, 0.0, 0.5]


def test_scores_of_small_log_ratios_keep_their_digits():
    """In single precision, e^x - 1 has three digits left at x = 1e-4."""
    ratios = [-1e-4, -1e-5, 1e-5, 1e-4]
    found = divergence.alpha_divergence(torch.tensor(ratios), alpha=0.3)
    assert found.tolist() == pytest.approx([math.expm1(-0.7 * ratio) / -0.7 for ratio in ratios], rel=1e-5)
