"""PPO as a method: what its critic says of a rollout."""

import functools

import torch

from tests.methods.toy import fit, make_loader, make_method, make_policy, rows_for


def test_values_before_learning_are_without_dropout():
    """Two looks at the same rollout agree, and the critic trains on with dropout."""
    dropping = functools.partial(make_policy, dropout=0.5)
    method, seen = make_method("ppo_separate", lr=0.1, policy=dropping), []
    score = method.score

    def look_twice(batch):
        seen.extend(score(batch)["values"] for _ in range(2))
        return score(batch)

    method.score = look_twice
    torch.manual_seed(0)
    fit(method, make_loader(rows_for("ppo_separate"), 8, num_steps=4), weights=False)
    assert any(values.any() for values in seen), "a critic that expects nothing would prove nothing"
    assert all(torch.equal(*seen[start : start + 2]) for start in range(0, len(seen), 2))
    assert method.critic.trunk.training
