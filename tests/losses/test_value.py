"""GAE against a hand-worked table and a slow loop, golden values of PPO, and the critic's loss."""

import pytest
import torch

from alignlab.losses.kl import kl_values
from alignlab.losses.policy_gradient import PolicyTokens, clipped
from alignlab.losses.value import (
    discounted_sums,
    explained_variance,
    gae,
    token_rewards,
    value_loss,
    value_metrics,
    whiten,
)
from tests.losses.golden import cases, flatten, inputs


def test_gae_by_hand():
    """γ = λ = 0.5. Two completions; the dash marks the value of the next token, 0 past the end:

    | t | r | V | δ = r + V'/2 - V | A = δ + A'/4       | A + V  |
    |---|---|---|------------------|--------------------|--------|
    | 0 | 0 | 1 | 0 + 1 - 1 = 0    | 0 + 1/16 = 0.0625  | 1.0625 |
    | 1 | 1 | 2 | 1 + ½ - 2 = -½   | -½ + 3/4 = 0.25    | 2.25   |
    | 2 | 4 | 1 | 4 + 0 - 1 = 3    | 3                  | 4      |
    | 0 | 2 | 4 | 2 + 0 - 4 = -2   | -2                 | 2      |
    """
    rewards = torch.tensor([0.0, 1.0, 4.0, 2.0])
    values = torch.tensor([1.0, 2.0, 1.0, 4.0])
    found = gae(rewards, values, torch.tensor([0, 0, 0, 1]), gamma=0.5, lam=0.5)
    assert found.advantages.tolist() == [0.0625, 0.25, 3.0, -2.0]
    assert found.returns.tolist() == [1.0625, 2.25, 4.0, 2.0]


def ragged(seed, lengths=(1, 9, 4, 16, 17, 2)):
    generator = torch.Generator().manual_seed(seed)
    sequence_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return sequence_ids, *torch.randn(2, len(sequence_ids), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.0, 1.0)])
def test_gae_equals_a_slow_loop_on_ragged_completions(gamma, lam):
    sequence_ids, rewards, values = ragged(0)
    found = gae(rewards, values, sequence_ids, gamma=gamma, lam=lam).advantages.tolist()
    for number in range(6):
        places = torch.nonzero(sequence_ids == number)[:, 0].tolist()
        advantage = value = 0.0
        for place in reversed(places):
            advantage = rewards[place].item() + gamma * value - values[place].item() + gamma * lam * advantage
            value = values[place].item()
            assert found[place] == pytest.approx(advantage, rel=1e-11, abs=1e-12)


def test_without_a_critic_and_discount_it_is_the_reward_to_go():
    sequence_ids, rewards, _ = ragged(1)
    to_go = gae(rewards, torch.zeros_like(rewards), sequence_ids, gamma=1.0, lam=1.0).advantages
    assert torch.allclose(to_go, discounted_sums(rewards, sequence_ids, 1.0))
    assert to_go[sequence_ids == 5][0].item() == pytest.approx(rewards[sequence_ids == 5].sum().item())


def test_nothing_and_single_tokens():
    nothing = torch.zeros(0)
    assert gae(nothing, nothing, nothing.long(), gamma=1.0, lam=0.9).advantages.tolist() == []
    found = gae(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), gamma=1.0, lam=0.9)
    assert found.advantages.tolist() == [0.5, 1.5]


def test_rewards_of_tokens_by_hand():
    """Scores 3 and 5 at the last tokens, 0.1 a nat; the second of three completions has no token."""
    found = token_rewards(
        torch.tensor([3.0, 99.0, 5.0]), torch.tensor([1.0, -2.0, 4.0]), torch.tensor([0, 0, 2]), kl_coef=0.1
    )
    assert found.tolist() == pytest.approx([-0.1, 3.2, 4.6])


def test_whitening_by_hand():
    """0, 2 and 4 have mean 2 and deviation 2; what is not kept is moved alike."""
    values, kept = torch.tensor([0.0, 2.0, 4.0, 8.0]), torch.tensor([True, True, True, False])
    assert whiten(values, kept).tolist() == pytest.approx([-1.0, 0.0, 1.0, 3.0])
    assert whiten(values, kept, shift=False).tolist() == pytest.approx([1.0, 2.0, 3.0, 5.0])
    assert whiten(values[:1]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("value", "loss", "slope", "clipped"),
    [
        (1.1, 0.405, -0.9, False),
        (1.5, 0.32, 0.0, True),
        (0.5, 1.125, -1.5, False),
    ],
)
def test_value_loss_by_hand(value, loss, slope, clipped):
    """Old value 1, return 2, held within 0.2. Beyond 1.2 nothing is gained; away from the return nothing is held."""
    values = torch.tensor([value], dtype=torch.float64).requires_grad_()
    found = value_loss(values, torch.tensor([1.0]), torch.tensor([2.0]), clip_value=0.2)
    (gradient,) = torch.autograd.grad(found.losses.sum(), values)
    assert found.losses.item() == pytest.approx(loss)
    assert gradient.item() == pytest.approx(slope)
    assert found.clipped.item() is clipped
    free = value_loss(values, torch.tensor([1.0]), torch.tensor([2.0]), clip_value=None)
    assert free.losses.item() == pytest.approx((value - 2) ** 2 / 2)
    assert not free.clipped.any()


@pytest.mark.parametrize("clip_value", [0.3, None])
def test_gradients(clip_value):
    _, values, old = ragged(3)
    returns = torch.linspace(-2, 2, len(values), dtype=torch.float64)
    loss = lambda x: value_loss(x, old, returns, clip_value=clip_value).losses  # noqa: E731
    assert torch.autograd.gradcheck(loss, (values.requires_grad_(),))


def test_metrics_by_hand():
    """Losses 0.5 and 0.02; the critic explains all but a quarter of the variance."""
    found = value_loss(torch.tensor([1.0, 0.4]), torch.zeros(2), torch.tensor([0.0, 0.6]), clip_value=None)
    means = {name: (r.sum / r.weight).item() for name, r in value_metrics(found).items()}
    assert means == pytest.approx({"value_loss": 0.26, "value_clip_fraction": 0.0})
    ratio = explained_variance(torch.tensor([5.5, 6.0, 6.5]), torch.tensor([0.0, 1.0, 2.0]))
    assert (ratio.sum / ratio.weight).item() == pytest.approx(0.75)
    assert explained_variance(torch.zeros(3), torch.tensor([0.0, 1.0, 2.0])).sum.item() == 0


@pytest.mark.parametrize("case", cases("ppo"), ids=lambda case: case["id"])
def test_golden_values(case):
    given, config, expected = inputs(case), case["config"], case["expected"]
    mask = given["mask"]
    flat = {name: flatten(value, mask)[0] for name, value in given.items() if value.dim() == 2}
    sequence_ids = flatten(mask, mask)[1]
    logps, values = flat["new_logps"].requires_grad_(), flat["new_values"].requires_grad_()

    drift = kl_values(flat["old_logps"], flat["ref_logps"], config["kl_estimator"])
    rewards = token_rewards(given["scores"], drift, sequence_ids, kl_coef=config["kl_coef"])
    if config["whiten_rewards"]:
        rewards = whiten(rewards, shift=False)
    estimate = gae(rewards, flat["values"], sequence_ids, gamma=config["gamma"], lam=config["lam"])
    advantages = whiten(estimate.advantages)
    bounds = {"clip_low": config["cliprange"], "clip_high": config["cliprange"], "dual_clip": None}
    tokens = PolicyTokens(
        token_logps=logps,
        advantages=advantages,
        sequence_ids=sequence_ids,
        num_sequences=len(mask),
        old_token_logps=flat["old_logps"],
    )
    policy = clipped(tokens, **bounds, ratio_level="token").losses.mean()
    critic = value_loss(values, flat["values"], estimate.returns, clip_value=config["cliprange_value"]).losses.mean()
    loss = policy + config["vf_coef"] * critic
    loss.backward()

    found = {
        "rewards": rewards,
        "advantages_raw": estimate.advantages,
        "advantages": advantages,
        "returns": estimate.returns,
        "policy_loss": policy,
        "value_loss": critic,
        "loss": loss,
        "grad_logps": logps.grad,
        "grad_values": values.grad,
    }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        wanted = torch.tensor(expected[name], dtype=torch.float64)
        wanted = flatten(wanted, mask)[0] if wanted.dim() == 2 else wanted
        assert torch.allclose(value, wanted, rtol=case["tol"], atol=case["tol"]), name
