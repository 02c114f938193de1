"""KL estimators against the exact divergence of a small categorical, in value and gradient, by enumeration."""

import math

import pytest
import torch

from alignlab.losses.kl import kl_losses, kl_values, next_kl_coef, penalise_rewards

SIZE = 5
ESTIMATORS = ["k1", "k2", "k3"]


def categorical(seed, logits=None):
    """Logits of the policy, and log-probabilities of all words under the policy, its reference and an older policy."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(3, SIZE, dtype=torch.float64, generator=generator) * 0.7
    logits = made[0].requires_grad_() if logits is None else logits
    return logits, logits.log_softmax(-1), made[1].log_softmax(-1), made[2].log_softmax(-1)


def expectation(values, sampler):
    """Over all words, as often as they are sampled."""
    return (sampler.detach().exp() * values).sum()


def divergence(policy, reference):
    return (policy.exp() * (policy - reference)).sum()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("seed", range(3))
def test_k1_and_k3_have_the_exact_value(estimator, seed):
    _, policy, reference, _ = categorical(seed)
    found = expectation(kl_values(policy, reference, estimator), policy)
    assert found.item() == pytest.approx(divergence(policy, reference).item(), rel=1e-12)


def test_k2_nears_the_value_as_the_two_near_each_other():
    _, policy, reference, _ = categorical(0)
    errors = []
    for share in (1.0, 0.1, 0.01):
        near = (policy + share * (reference - policy)).log_softmax(-1)
        exact = divergence(policy, near).item()
        errors.append(abs(expectation(kl_values(policy, near, "k2"), policy).item() / exact - 1))
    assert errors[0] > 0.02
    assert errors[1] < errors[0] / 5
    assert errors[2] < 0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(3))
def test_on_policy_gradient_is_exact(estimator, seed):
    logits, policy, reference, _ = categorical(seed)
    losses = kl_losses(policy, reference, None, estimator=estimator, gradient="on_policy")
    assert torch.equal(losses.detach(), kl_values(policy, reference, estimator).detach())
    (found,) = torch.autograd.grad(expectation(losses, policy), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(divergence(policy, reference), logits)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("seed", range(3))
def test_importance_has_the_exact_gradient_for_samples_of_an_older_policy(estimator, seed):
    logits, policy, reference, old = categorical(seed)
    losses = kl_losses(policy, reference, old, estimator=estimator, gradient="importance")
    if estimator != "k2":
        assert expectation(losses, old).item() == pytest.approx(divergence(policy, reference).item(), rel=1e-12)
    (found,) = torch.autograd.grad(expectation(losses, old), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(divergence(policy, reference), logits)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


def test_the_on_policy_gradient_is_wrong_for_samples_of_an_older_policy():
    logits, policy, reference, old = categorical(0)
    losses = kl_losses(policy, reference, old, estimator="k3", gradient="on_policy")
    (found,) = torch.autograd.grad(expectation(losses, old), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(divergence(policy, reference), logits)
    assert not torch.allclose(found, wanted, rtol=0.1)


@pytest.mark.parametrize(
    ("estimator", "gradient_of"),
    [
        ("k1", lambda policy, reference: 0 * policy.sum()),
        ("k2", divergence),
        ("k3", lambda policy, reference: divergence(reference, policy)),
    ],
)
def test_what_the_plain_estimators_push_towards(estimator, gradient_of):
    """Differentiated as they stand: k1 nowhere, k2 to KL(policy | reference), k3 to KL(reference | policy)."""
    logits, policy, reference, _ = categorical(1)
    losses = kl_losses(policy, reference, None, estimator=estimator, gradient="plain")
    (found,) = torch.autograd.grad(expectation(losses, policy), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(gradient_of(policy, reference), logits)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients(estimator):
    logps, reference, old = -torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logps.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_values(x, reference, estimator), (logps,))
    if estimator != "k2":
        assert torch.autograd.gradcheck(
            lambda x: kl_losses(x, reference, old, estimator=estimator, gradient="importance"), (logps,)
        )


def test_worked_by_hand():
    """Policy 1/2, reference 1/4: d = log 2; k2 = d²/2; k3 = 1/2 - 1 + d."""
    policy, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    found = {name: kl_values(policy, reference, name).item() for name in ESTIMATORS}
    assert found == pytest.approx({"k1": math.log(2), "k2": math.log(2) ** 2 / 2, "k3": math.log(2) - 0.5})


@pytest.mark.parametrize("gradient", ["plain", "on_policy", "importance"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_far_policies_stay_finite(estimator, gradient):
    logps = torch.tensor([-900.0, -0.1]).requires_grad_()
    losses = kl_losses(
        logps, torch.tensor([-0.1, -900.0]), logps.detach().flip(0), estimator=estimator, gradient=gradient
    )
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logps.grad.isfinite().all()


def test_the_reward_pays_for_the_whole_completion():
    """1 - 0.5 (0.2 + 0.4) = 0.7 and 2 - 0.5 · 1; a missing reward stays missing."""
    rewards = penalise_rewards(
        torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([0.2, 0.4, 1.0, 9.0]), torch.tensor([0, 0, 1, 2]), kl_coef=0.5
    )
    assert rewards[:2].tolist() == pytest.approx([0.7, 1.5])
    assert rewards[2].isnan()


def test_the_controller_by_hand():
    """10 % too much: up by a tenth of a tenth; far off: by a tenth of 0.2 at most, either way."""
    assert next_kl_coef(0.1, 6.6, target=6.0, gain=0.1) == pytest.approx(0.1 * 1.01)
    assert next_kl_coef(0.1, 600.0, target=6.0, gain=0.1) == pytest.approx(0.1 * 1.02)
    assert next_kl_coef(0.1, 0.0, target=6.0, gain=0.1) == pytest.approx(0.1 * 0.98)
    assert next_kl_coef(0.1, 6.0, target=6.0, gain=0.1) == 0.1


def test_the_controller_reaches_its_target():
    """A divergence that falls as the coefficient rises: kl = 1 / coefficient."""
    kl_coef = 0.01
    for _ in range(600):
        kl_coef = next_kl_coef(kl_coef, 1 / kl_coef, target=5.0, gain=0.1)
    assert 1 / kl_coef == pytest.approx(5.0, rel=1e-3)
