"""Batched greedy completion equals Transformers' own, one prompt at a time."""

import pytest
import torch

from alignlab.errors import InputError
from alignlab.rollout.sampler.generate import complete
from tests.methods.toy import make_policy

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16], [20, 21]]


def options(**changes):
    return {"max_completion_tokens": 12, "stop_tokens": [3], "pad_token_id": 0, "batch_size": 4, **changes}


@pytest.fixture(scope="module")
def policy():
    model = make_policy()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def alone(policy, prompt, stop):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + 12 and (len(tokens) == len(prompt) or tokens[-1] != stop):
        with torch.no_grad():
            tokens.append(int(policy.eval()(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_equals_one_prompt_at_a_time_in_the_given_order(policy, batch_size):
    stop = alone(policy, PROMPTS[0], stop=-1)[4]  # a token that does come up
    found = complete(policy, PROMPTS, **options(batch_size=batch_size, stop_tokens=[stop]))
    assert found == [alone(policy, prompt, stop) for prompt in PROMPTS]
    assert found[0][-1] == stop and len(found[0]) <= 5


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_left_as_it_was(policy, mode):
    policy.train(mode)
    complete(policy, PROMPTS, **options())
    assert policy.training == mode


def test_an_empty_prompt_is_refused(policy):
    with pytest.raises(InputError, match="no tokens"):
        complete(policy, [[1], []], **options())
