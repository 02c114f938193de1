"""RLOO as a method: each completion against the mean of the others of its prompt."""

import torch

from tests.methods.prompts import ONLINE
from tests.methods.toy import fit, make_loader, make_method, rows_for


def test_an_advantage_is_the_reward_less_the_mean_of_the_others():
    """Three completions a prompt, no divergence: r_i - (r_j + r_k) / 2."""
    method = ONLINE["rloo"](reward_kl_coef=0.0, factories=make_method("rloo", lr=0.1).factories)
    seen, find = [], method.advantages

    def look(rollout):
        seen.append(find(rollout))
        return seen[-1]

    method.advantages = look
    fit(method, make_loader(rows_for("rloo"), 8, num_steps=1), weights=False)
    rewards, found = (seen[0].columns[name].view(-1, 3).double() for name in ("reward", "advantages"))
    assert rewards.std() > 0
    torch.testing.assert_close(found, rewards - (rewards.sum(1, keepdim=True) - rewards) / 2)
