import logging
import math

import pytest
import torch

from alignlab.rollout.vllm.parity import Parity, ParityError, check_parity, measure


def test_measures_worked_by_hand():
    """Probabilities 1/2 and 1/4 sampled, 1/4 and 1/4 trained: |log 2| and 0; ratio 2; k3 = 1/2 - 1 + log 2, and 0."""
    found = measure(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log())
    assert found.mean_difference == pytest.approx(math.log(2) / 2)
    assert found.largest_ratio == pytest.approx(2)
    assert found.kl == pytest.approx((math.log(2) - 0.5) / 2)


def test_the_kl_estimate_is_that_of_the_distributions():
    """Tokens drawn from the server's distribution, in exact proportion."""
    server, trainer = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    tokens = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    exact = (server * (server / trainer).log()).sum()
    assert measure(server.log()[tokens], trainer.log()[tokens]).kl == pytest.approx(exact.item(), rel=1e-6)


def test_equal_is_zero_and_no_gradient_is_needed():
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert measure(logps.detach(), logps) == Parity(0.0, 1.0, 0.0)


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,))])
def test_nothing_to_compare(shapes):
    with pytest.raises(ValueError, match="log-probs of"):
        measure(*(torch.zeros(shape) for shape in shapes))


def test_judgement(caplog):
    limits = {"warn_at": 0.02, "stop_at": 0.2}
    with caplog.at_level(logging.WARNING):
        check_parity(Parity(0.01, 1.1, 0.0), **limits)
        assert not caplog.records
        check_parity(Parity(0.1, 1.5, 0.01), **limits)
    assert "0.1 nats per token" in caplog.text
    for bad in (0.3, math.nan):
        with pytest.raises(ParityError, match=r"rollout\.dtype=float32"):
            check_parity(Parity(bad, 2.0, 0.1), **limits)
