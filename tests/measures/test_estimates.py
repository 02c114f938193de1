"""Confidence intervals."""

import math

import pytest
import torch

from alignlab.measures.estimates import estimate, of_rows, of_several, share_of
from alignlab.types.loss import Ratio

NAN = math.nan


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_share_has_wilsons_interval():
    """8 of 10: worked out by hand from the formula, as in Brown, Cai and DasGupta (2001), section 3.1."""
    found = estimate(share_of(tensor(*[1] * 8, 0, 0)))
    assert (found.value, found.num_rows) == (0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_a_share_of_one_is_not_certain():
    found = estimate(share_of(tensor(1, 1, 1)))
    assert found.value == found.high == 1.0 and found.low == pytest.approx(3 / (3 + 1.959964**2), abs=1e-6)


def test_a_mean_has_the_interval_of_its_standard_error():
    found = estimate(of_rows(tensor(1, 2, 4, NAN)))
    error = tensor(1, 2, 4).std() / math.sqrt(3)
    assert (found.value, found.num_rows) == (pytest.approx(7 / 3), 3)
    assert found.high - found.value == pytest.approx(1.959964 * float(error), rel=1e-6)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_what_a_row_holds_counts_as_one():
    """Two rows of equal tokens each: a hundred tokens say no more than the two rows."""
    few = estimate(Ratio(tensor(1, 3), tensor(1, 1)))
    many = estimate(Ratio(tensor(100, 300), tensor(100, 100)))
    assert (few.value, few.low, few.high) == pytest.approx((many.value, many.low, many.high))


def test_missing_values_of_a_row_do_not_count():
    found = estimate(of_several(torch.tensor([[1.0, NAN], [2.0, 3.0], [NAN, NAN]])))
    assert (found.value, found.num_rows) == (2.0, 2)


def test_one_row_has_no_interval_and_none_no_estimate():
    assert math.isnan(estimate(of_rows(tensor(2))).low)
    assert estimate(of_rows(tensor(NAN))) is None


@pytest.mark.parametrize("kind", ["share", "ratio"])
def test_intervals_cover_the_truth_as_often_as_they_say(kind):
    """2,000 samples of 60 rows: the share of intervals that hold the truth is 95 % within three standard errors."""
    torch.manual_seed(0)
    inside = 0
    for _ in range(2000):
        if kind == "share":
            found, truth = estimate(share_of((torch.rand(60) < 0.7).double())), 0.7
        else:  # rows of 1 to 9 tokens, whose losses share a part
            counts = torch.randint(1, 10, (60,)).double()
            sums = counts * (2 + torch.randn(60, dtype=torch.float64)) + torch.randn(60) * counts.sqrt()
            found, truth = estimate(Ratio(sums, counts)), 2.0
        inside += found.low <= truth <= found.high
    assert inside / 2000 == pytest.approx(0.95, abs=0.025)
