"""The entropy bonus and the tokens of highest entropy."""

import pytest
import torch

from alignlab.losses.entropy import entropy_bonus, entropy_threshold, top_entropy_mask
from tests.losses.reduce import step_mean

ENTROPIES = torch.tensor([0.5, 3.0, 1.0, 2.0, 0.0], dtype=torch.float64)


def test_the_bonus_is_a_token_mean_however_many_completions_there_are():
    """Mean of 0.5, 3, 1, 2 and 0 is 1.3; with 0.1 per nat the loss falls by 0.13."""
    entropies = ENTROPIES.clone().requires_grad_()
    for sequences in (2, 4, 70):
        loss = step_mean(entropy_bonus(entropies, entropy_coef=0.1), tokens=5, sequences=sequences)
        assert loss.item() == pytest.approx(-0.13)
        (gradient,) = torch.autograd.grad(loss, entropies)
        assert gradient.tolist() == pytest.approx([-0.02] * 5)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 0.5, 1.0])
def test_the_threshold_is_a_quantile(share):
    assert entropy_threshold(ENTROPIES, share).item() == pytest.approx(torch.quantile(ENTROPIES, 1 - share).item())


def test_the_top_two_of_five():
    mask = top_entropy_mask(ENTROPIES, entropy_threshold(ENTROPIES, 0.4))
    assert mask.tolist() == [False, True, False, True, False]


def test_all_and_the_single_highest():
    assert top_entropy_mask(ENTROPIES, entropy_threshold(ENTROPIES, 1.0)).all()
    assert top_entropy_mask(ENTROPIES, entropy_threshold(ENTROPIES, 0.0)).sum() == 1
