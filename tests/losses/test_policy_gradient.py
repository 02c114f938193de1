"""Policy losses against golden values, slow loops on ragged completions, hand-worked numbers and exact gradients."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from hydra.utils import instantiate

from alignlab.cli.composition.compose import compose
from alignlab.losses import policy_gradient
from alignlab.losses.entropy import entropy_bonus, entropy_threshold, top_entropy_mask
from alignlab.losses.importance import off_policy_mask, truncated_importance
from alignlab.losses.kl import kl_losses, kl_values, penalise_rewards
from alignlab.losses.normaliser import normalise
from alignlab.losses.policy_gradient import PolicyTokens, policy_metrics
from tests.losses.golden import cases, flatten, inputs
from tests.losses.reduce import step_mean

NAMES = ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo", "cispo", "sapo", "gmpo", "vespo"]
TOKEN_BOUNDED = {"clip_low": 0.2, "clip_high": 0.25, "dual_clip": None, "ratio_level": "token"}
LOSSES = {
    "clipped": TOKEN_BOUNDED,
    "clipped_sequence": TOKEN_BOUNDED | {"ratio_level": "sequence"},
    "clipped_sum": TOKEN_BOUNDED | {"ratio_level": "sequence_sum"},
    "clipped_dual": TOKEN_BOUNDED | {"dual_clip": 1.6},
    "cispo": {"clip_low": 0.3, "clip_high": 0.1, "ratio_level": "token"},
    "cispo_unbounded_below": {"clip_low": None, "clip_high": 0.1, "ratio_level": "token"},
    "sapo": {"temperature_positive": 1.0, "temperature_negative": 1.3, "ratio_level": "token"},
    "gmpo": {"clip_low": 0.3, "clip_high": 0.4},
    "vespo": {"power_positive": 2.0, "rate_positive": 3.0, "power_negative": 3.0, "rate_negative": 2.0},
}


def loss_of(name):
    return partial(getattr(policy_gradient, name.split("_")[0]), **LOSSES[name])


def make_tokens(seed=0, lengths=(3, 1, 7, 2, 4), per_token=False, **changes):
    """Ragged completions whose ratios lie on both sides of every bound."""
    generator = torch.Generator().manual_seed(seed)
    sequence_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    logps, old, reference = -torch.rand(3, len(sequence_ids), dtype=torch.float64, generator=generator) * 1.5 - 0.01
    advantages = torch.randn(len(sequence_ids if per_token else lengths), dtype=torch.float64, generator=generator)
    given = {
        "token_logps": logps.requires_grad_(),
        "advantages": advantages if per_token else advantages[sequence_ids],
        "sequence_ids": sequence_ids,
        "num_sequences": len(lengths),
        "old_token_logps": old,
        "reference_token_logps": reference,
    }
    return PolicyTokens(**given | changes)


# --- golden values ----------------------------------------------------------------------------------------------------

NORMALISERS = {"grpo": "sequence", "sapo": "sequence", "dr_grpo": "constant", "luspo": "sum"}


def golden_loss(case):
    """The function that a case's settings stand for."""
    config, level = case["config"], case["config"]["importance_sampling_level"]
    low, high = config["epsilon"], config["epsilon_high"]
    if case["id"].startswith("gmpo"):
        return partial(policy_gradient.gmpo, clip_low=low, clip_high=high)
    if config["loss_type"] == "cispo":
        return partial(policy_gradient.cispo, clip_low=None, clip_high=high - 1, ratio_level=level)
    if config["loss_type"] in ("sapo", "vespo"):
        words = {
            "sapo": (("temperature", "sapo_temperature"),),
            "vespo": (("power", "vespo_k"), ("rate", "vespo_lambda")),
        }
        settings = {
            f"{ours}_{sign}": config[f"{theirs}_{sign[:3]}"]
            for (ours, theirs), sign in product(words[config["loss_type"]], ("positive", "negative"))
        }
        more = {"ratio_level": level} if config["loss_type"] == "sapo" else {}
        return partial(getattr(policy_gradient, config["loss_type"]), **settings, **more)
    bounds = {"clip_low": low, "clip_high": high, "dual_clip": config["delta"]}
    return partial(policy_gradient.clipped, **bounds, ratio_level=level)


def golden_tokens(case):
    given = inputs(case)
    mask = given["completion_mask"]
    fields = {name: flatten(given[f"{name}per_token_logps"], mask)[0] for name in ("", "old_", "ref_", "sampling_")}
    sequence_ids = flatten(mask, mask)[1]
    tokens = PolicyTokens(
        token_logps=fields[""].requires_grad_(),
        advantages=given["advantages"][sequence_ids],
        sequence_ids=sequence_ids,
        num_sequences=len(mask),
        old_token_logps=None if case["config"]["on_policy"] else fields["old_"],
        reference_token_logps=fields["ref_"],
        sampled_token_logps=fields["sampling_"],
        entropies=flatten(given["entropies"], mask)[0].requires_grad_(),
    )
    return given, tokens


def golden_factors(config, tokens):
    """What multiplies the policy's losses."""
    where = (tokens.sequence_ids, tokens.num_sequences)
    factors = torch.ones_like(tokens.advantages)
    if config["top_entropy_quantile"] < 1:
        threshold = entropy_threshold(tokens.entropies, config["top_entropy_quantile"])
        factors = factors * top_entropy_mask(tokens.entropies, threshold)
    if config["off_policy_mask_threshold"] is not None:
        drift = (tokens.token_logps, tokens.old_token_logps, tokens.advantages)
        factors = factors * off_policy_mask(*drift, *where, threshold=config["off_policy_mask_threshold"])
    if config["vllm_correction"]:
        engines = (tokens.old_token_logps, tokens.sampled_token_logps)
        factors = factors * truncated_importance(*engines, *where, cap=1.05, level="token", beyond="truncate")
    return factors


def golden_kl(case, tokens):
    config = case["config"]
    k3 = partial(kl_losses, tokens.token_logps, tokens.reference_token_logps, tokens.old_token_logps, estimator="k3")
    if case["id"].startswith("gmpo") or not config["use_bias_correction_kl"]:
        return k3(gradient="plain")
    if config["importance_sampling_level"] == "token":
        return k3(gradient="importance")
    # Weighed by the ratio of the completion, whose gradient is not that of any divergence.
    return tokens.log_ratios("sequence").exp() * kl_values(tokens.token_logps, tokens.reference_token_logps, "k3")


@pytest.mark.parametrize("case", cases("grpo"), ids=lambda case: case["id"])
def test_golden_values(case):
    config, expected = case["config"], case["expected"]
    given, tokens = golden_tokens(case)
    normaliser = "sequence" if case["id"].startswith("gmpo") else NORMALISERS.get(config["loss_type"], "token")
    found = golden_loss(case)(tokens)
    losses = found.losses * golden_factors(config, tokens)
    if config["beta"]:
        losses = losses + config["beta"] * golden_kl(case, tokens)
    policy = mean(losses, tokens, normaliser, config["max_completion_length"]) / config["gradient_accumulation_steps"]
    entropy = entropy_bonus(tokens.entropies, entropy_coef=config["entropy_coef"])
    loss = policy + step_mean(entropy, tokens=config["num_items_in_batch"])
    assert loss.item() == pytest.approx(expected["loss"], rel=case["tol"])
    loss.backward()
    pairs = {"grad": tokens.token_logps.grad}
    pairs |= {"grad_entropies": tokens.entropies.grad} if config["entropy_coef"] else {}
    for name, gradient in pairs.items():
        wanted = flatten(torch.tensor(expected[name], dtype=torch.float64), given["completion_mask"])[0]
        assert torch.allclose(gradient, wanted, rtol=case["tol"], atol=case["tol"])
    compare_metrics(case, found, tokens)


def compare_metrics(case, found, tokens):
    """A ratio of whole completions is counted there once for each, by us once for each token; CISPO's only where good.

    The peer's extremes over completions (``low_min``, ``high_max``) are no sums and have no counterpart.
    """
    level, expected = case["config"]["importance_sampling_level"], case["expected"]["metrics"]
    ours = {
        "clip_ratio/low_mean": found.clipped_low,
        "clip_ratio/high_mean": found.clipped_high,
        "cispo_clip_ratio": found.clipped_high & (tokens.advantages > 0),
        "kl": golden_kl(case, tokens),
    }
    for name in ours.keys() & expected.keys():
        normaliser = "sequence" if level == "sequence" and name != "kl" else "token"
        assert mean(ours[name].double(), tokens, normaliser).item() == pytest.approx(expected[name], rel=1e-6), name


@pytest.mark.parametrize("case", cases("rloo"), ids=lambda case: case["id"])
def test_golden_values_of_rloo(case):
    """The ratio is that of whole completions, each of which counts once."""
    given = inputs(case)
    mask = given["completion_mask"]
    (logps, sequence_ids), (old, _) = (flatten(given[f"{name}per_token_logps"], mask) for name in ("", "old_"))
    logps.requires_grad_()
    tokens = PolicyTokens(
        token_logps=logps,
        advantages=given["advantages"][sequence_ids],
        sequence_ids=sequence_ids,
        num_sequences=len(mask),
        old_token_logps=old,
    )
    clip = case["config"]["epsilon"]
    settings = {"clip_low": clip, "clip_high": clip, "dual_clip": None, "ratio_level": "sequence_sum"}
    loss = mean(policy_gradient.clipped(tokens, **settings).losses, tokens, "sequence")
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=case["tol"])
    loss.backward()
    wanted = flatten(torch.tensor(case["expected"]["grad"], dtype=torch.float64), mask)[0]
    assert torch.allclose(logps.grad, wanted, rtol=case["tol"], atol=case["tol"])


# --- slow loops -------------------------------------------------------------------------------------------------------


def mean(losses, tokens, normaliser, max_completion_tokens=9):
    term = normalise(losses, tokens.sequence_ids, tokens.num_sequences, normaliser, max_completion_tokens)
    return step_mean(term, tokens=len(losses), sequences=tokens.num_sequences)


def slow_losses(name, logps, old, advantages):
    """One completion, token by token, in plain Python."""
    settings, logs = LOSSES[name], [a - b for a, b in zip(logps, old, strict=True)]
    level = settings.get("ratio_level", "token")
    logs = {"token": logs, "sequence": [sum(logs) / len(logs)] * len(logs), "sequence_sum": [sum(logs)] * len(logs)}[
        level
    ]
    if name.startswith("gmpo"):
        held = [min(x, 0.4) if a > 0 else max(x, -0.3) for x, a in zip(logs, advantages, strict=True)]
        return [-math.exp(sum(held) / len(held)) * a for a in advantages]
    if name == "vespo":
        w = math.exp(sum(logs))
        k, rate = (2, 3) if advantages[0] >= 0 else (3, 2)
        return [-(w**k) * math.exp(rate - rate * w) * a * x for a, x in zip(advantages, logps, strict=True)]
    slow = {"clipped": slow_clipped, "cispo": slow_cispo, "sapo": slow_sapo}[name.split("_")[0]]
    return [slow(settings, math.exp(x), a, p) for x, a, p in zip(logs, advantages, logps, strict=True)]


def slow_clipped(settings, ratio, advantage, logp):
    bounded = max(min(ratio, 1 + settings["clip_high"]), 1 - settings["clip_low"])
    return -min(min(ratio, settings["dual_clip"] or math.inf) * advantage, bounded * advantage)


def slow_cispo(settings, ratio, advantage, logp):
    lowest = 0 if settings["clip_low"] is None else 1 - settings["clip_low"]
    return -min(max(ratio, lowest), 1 + settings["clip_high"]) * advantage * logp


def slow_sapo(settings, ratio, advantage, logp):
    temperature = settings["temperature_positive" if advantage > 0 else "temperature_negative"]
    return -4 / temperature / (1 + math.exp(-temperature * (ratio - 1))) * advantage


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("normaliser", ["sequence", "token", "constant", "sum"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_loop_on_ragged_completions(name, normaliser, seed):
    tokens = make_tokens(seed)
    total = weight = 0.0
    for number in range(5):
        own = tokens.sequence_ids == number
        losses = slow_losses(
            name, *(x[own].tolist() for x in (tokens.token_logps, tokens.old_token_logps, tokens.advantages))
        )
        share = {"sequence": len(losses), "constant": 9}.get(normaliser, 1)
        total += sum(losses) / share
        weight += len(losses) if normaliser == "token" else 1
    assert mean(loss_of(name)(tokens).losses, tokens, normaliser).item() == pytest.approx(total / weight, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith(("cispo", "vespo"))])
def test_gradients(name):
    """CISPO and VESPO hold a factor of their gradient fixed: their value is not what they differentiate."""
    tokens = make_tokens(5)
    assert torch.autograd.gradcheck(
        lambda x: loss_of(name)(make_tokens(5, token_logps=x)).losses, (tokens.token_logps,)
    )


@pytest.mark.parametrize("name", ["cispo", "vespo"])
def test_weights_carry_no_gradient(name):
    tokens = make_tokens(5)
    losses = loss_of(name)(tokens).losses
    (gradient,) = torch.autograd.grad(losses.sum(), tokens.token_logps)
    assert torch.allclose(gradient, (losses / tokens.token_logps).detach(), rtol=1e-12)


# --- by hand ----------------------------------------------------------------------------------------------------------


def by_hand(ratios, advantages, name="clipped", **changes):
    logps = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    tokens = PolicyTokens(
        token_logps=logps,
        advantages=torch.tensor(advantages, dtype=torch.float64),
        sequence_ids=torch.zeros(len(ratios), dtype=torch.long),
        num_sequences=1,
        old_token_logps=torch.zeros_like(logps),
    )
    found = getattr(policy_gradient, name)(tokens, **LOSSES[name] | changes)
    return found, torch.autograd.grad(found.losses.sum(), logps)[0]


def test_clipping_by_hand():
    """Bounds 0.8 and 1.25. A good token at 1.5 is held at 1.25, a bad one at 0.5 at 0.8; the other sides are free."""
    found, gradient = by_hand([1.5, 0.5, 1.5, 0.5, 1.1], [2.0, -1.0, -1.0, 2.0, 1.0])
    assert found.losses.tolist() == pytest.approx([-2.5, 0.8, 1.5, -1.0, -1.1])
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 1.5, -1.0, -1.1])
    assert found.clipped_high.tolist() == [True, False, False, False, False]
    assert found.clipped_low.tolist() == [False, True, False, False, False]


def test_dual_clip_by_hand():
    """A bad token at ratio 5 costs no more than at 3, and is left alone; a good one is held at 1.25 as ever."""
    found, gradient = by_hand([5.0, 5.0, 2.0], [-1.0, 1.0, -1.0], dual_clip=3.0)
    assert found.losses.tolist() == pytest.approx([3.0, -1.25, 2.0])
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 2.0])


def test_cispo_by_hand():
    """Weight 1.1 instead of 2: the token still learns, with gradient -1.1 times its advantage 3."""
    found, gradient = by_hand([2.0], [3.0], "cispo")
    assert gradient.tolist() == pytest.approx([-3.3])
    assert (found.clipped_high.tolist(), found.clipped_low.tolist()) == ([True], [False])


@pytest.mark.parametrize("name", ["clipped", "cispo", "gmpo"])
def test_a_ratio_that_equals_its_bound_is_not_counted_as_clipped(name):
    """As in a first update without room on either side, where every ratio is 1."""
    found, _ = by_hand([1.0, 1.0], [1.0, -1.0], name, clip_low=0.0, clip_high=0.0)
    assert not found.clipped_low.any() and not found.clipped_high.any()


@pytest.mark.parametrize("name", LOSSES)
def test_without_an_old_policy_the_gradient_is_that_of_reinforce(name):
    """Ratio 1: -A ∇ log policy at each token, or its mean over the completion."""
    tokens = make_tokens(1, old_token_logps=None)
    loss = mean(loss_of(name)(tokens).losses, tokens, "sequence")
    (gradient,) = torch.autograd.grad(loss, tokens.token_logps)
    counts = torch.bincount(tokens.sequence_ids)[tokens.sequence_ids]
    expected = -tokens.advantages / counts / tokens.num_sequences
    if name == "clipped_sum":
        expected = expected * counts
    assert torch.allclose(gradient, expected, rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_huge_ratios_stay_finite(name):
    old = torch.full((17,), -900.0)
    old[::2] = -0.1
    tokens = make_tokens(2, old_token_logps=old, token_logps=torch.linspace(-950, -0.1, 17).requires_grad_())
    loss = mean(loss_of(name)(tokens).losses, tokens, "token")
    (gradient,) = torch.autograd.grad(loss, tokens.token_logps)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_metrics_by_hand():
    """Ratios 1.5, 1 and 0.5 of a completion."""
    logps = torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64).log()
    tokens = PolicyTokens(
        token_logps=logps,
        advantages=torch.ones(3),
        sequence_ids=torch.tensor([0, 0, 0]),
        num_sequences=1,
        old_token_logps=torch.zeros(3),
        reference_token_logps=logps - math.log(2),
        entropies=torch.tensor([1.0, 2.0, 6.0]),
    )
    found = policy_metrics(tokens, loss_of("clipped")(tokens))
    assert {name: (ratio.sum / ratio.weight).item() for name, ratio in found.items()} == pytest.approx(
        {
            "clip_fraction": 1 / 3,
            "clip_fraction_low": 0.0,
            "clip_fraction_high": 1 / 3,
            "ratio": 1.0,
            "approx_kl": (0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 3,
            "entropy": 3.0,
            "kl": math.log(2) - 0.5,
        }
    )


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_divergence_in_the_reward_has_the_exact_gradient():
    """All completions of two tokens over three words: a summed k1 off the reward gives ∇ KL of whole completions."""
    generator = torch.Generator().manual_seed(3)
    first, second = (
        torch.randn(3, dtype=torch.float64, generator=generator),
        torch.randn(3, 3, dtype=torch.float64, generator=generator),
    )
    reference = torch.randn(4, 3, dtype=torch.float64, generator=generator).log_softmax(-1)
    logits = torch.cat([first[None], second]).requires_grad_()
    policy = logits.log_softmax(-1)
    words = torch.tensor(list(product(range(3), range(3))))

    def token_logps(table):
        return torch.stack([table[0][words[:, 0]], table[1 + words[:, 0], words[:, 1]]], 1)

    logps = token_logps(policy)
    exact = (logps.sum(1).exp() * (logps - token_logps(reference)).sum(1)).sum()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)

    flat, sequence_ids = logps.flatten(), torch.arange(9).repeat_interleave(2)
    drift = kl_values(flat, token_logps(reference).flatten(), "k1").detach()
    rewards = penalise_rewards(torch.zeros(9, dtype=torch.float64), drift, sequence_ids, kl_coef=1.0)
    tokens = PolicyTokens(
        token_logps=flat, advantages=rewards[sequence_ids], sequence_ids=sequence_ids, num_sequences=9
    )
    probability = logps.sum(1).exp().detach()[sequence_ids]
    losses = loss_of("clipped")(tokens).losses * probability
    (found,) = torch.autograd.grad(normalise(losses, sequence_ids, 9, "sum").sum, logits)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_a_loss_and_a_normaliser(name):
    node = compose(["method=grpo", f"method/loss={name}"]).method
    tokens = make_tokens(1)
    losses = instantiate(node.loss)(tokens).losses
    loss = mean(losses, tokens, node.normaliser)
    loss.backward()
    assert loss.isfinite()
    assert tokens.token_logps.grad.abs().sum() > 0
    unit = normalise(losses, tokens.sequence_ids, tokens.num_sequences, node.normaliser).unit
    assert unit == ("supervised_tokens" if node.normaliser == "token" else "sequences")
