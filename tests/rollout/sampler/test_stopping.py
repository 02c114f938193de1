"""Where completions end."""

import pytest
import torch
from transformers import AutoTokenizer

from alignlab.errors import InputError
from alignlab.rollout.sampler.stopping import Stopping
from tests.conftest import REPOSITORY
from tests.rollout.sampler.test_sampling import settings


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(REPOSITORY / "src/alignlab/assets/pocket")


def last_positions(tokenizer, tokens, **changes):
    """Number of tokens at which the completion ends, or None."""
    stopping = Stopping(settings(**changes), tokenizer, vocab_size=384, device=torch.device("cpu"))
    for length in range(1, len(tokens) + 1):
        if stopping.ended(torch.tensor(tokens[length - 1 : length]), lambda row, n=length: tokens[:n]).item():
            return length
    return None


def test_a_stop_token_ends(tokenizer):
    assert last_positions(tokenizer, [9, 8, 7, 8], stop_tokens=[7, 5, 10**6]) == 3
    assert last_positions(tokenizer, [9, 8, 7, 8], stop_tokens=[]) is None


@pytest.mark.parametrize("string", ["r>4", "answer>42</", "2", " is", "é!", "!"])
def test_a_stop_string_ends_at_the_first_token_that_completes_it(tokenizer, string):
    tokens = tokenizer.encode("So it is <answer>42</answer> é!", add_special_tokens=False)
    expected = next(n for n in range(1, len(tokens) + 1) if string in tokenizer.decode(tokens[:n]))
    assert last_positions(tokenizer, tokens, stop_strings=["never", string]) == expected


def test_only_tokens_that_can_end_a_stop_string_are_decoded(tokenizer):
    stopping = Stopping(settings(stop_strings=["x4"]), tokenizer, vocab_size=384, device=torch.device("cpu"))
    four, seven = (tokenizer.encode(digit, add_special_tokens=False)[-1] for digit in "47")
    decoded = []
    stopping.ended(torch.tensor([seven, four, seven]), lambda row: decoded.append(row) or [four])
    assert decoded == [1]


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(InputError, match="there is no tokenizer"):
        Stopping(settings(stop_strings=["x"]), None, vocab_size=8, device=torch.device("cpu"))
