"""Slow, obvious float64 figures of the toy policy, to hold a method's first step against."""

import functools

import torch

from tests.methods.toy import fit, make_loader, make_method, make_policy, rows_for


def make_other(path=""):
    """A reference that the policy is likelier than in some completions and not in others."""
    policy = make_policy()
    with torch.no_grad():
        policy.lm_head.weight.mul_(3.0)
    return policy


@functools.cache
@torch.no_grad()
def completions(name, make=make_policy, num_rows=8):
    """Of each row's completions, the chosen first: sum of the log-probabilities and number of supervised tokens.

    Tokens with weights are summed and counted by them.
    """
    policy = make().double()
    return [_of_row(policy, row) for row in list(rows_for(name))[:num_rows]]


def _of_row(policy, row):
    (prompt, *sizes), found, start = row.groups[0], [], row.groups[0][0]
    for size in sizes:
        places = [*range(prompt), *range(start, start + size)]
        tokens = torch.tensor([row.tokens[place] for place in places])
        weights = torch.tensor([float((row.weights or row.supervised)[place]) for place in places])[1:]
        logps = policy(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        found.append(((logps * weights).sum().item(), weights.sum().item()))
        start += size
    return found


def pairs(name, make=make_policy):
    """Chosen and rejected of every pair, each a sum and a number of tokens."""
    return [(chosen, rejected) for chosen, *others in completions(name, make) for rejected in others]


def imitation(name):
    """Negative log-likelihood per token of the chosen, each once per pair."""
    chosen = [one for one, _ in pairs(name)]
    return -sum(logp for logp, _ in chosen) / sum(count for _, count in chosen)


def softplus(value):
    """Log (1 + exp value)."""
    return torch.nn.functional.softplus(torch.tensor(value, dtype=torch.float64)).item()


def first_step(name, method=None):
    """What a method logs of its first step, over the first eight rows."""
    _, steps = fit(method or make_method(name), make_loader(rows_for(name), 3, num_steps=1, order="as_is"))
    return steps[0]
