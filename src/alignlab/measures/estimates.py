"""Means with 95 % confidence intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from alignlab.types.loss import Ratio

Z = 1.959963984540054
"""Standard deviations of a normal distribution on either side of its mean that hold 95 %."""


class Share(Ratio):
    """Rows with one value each, between 0 and 1."""


@dataclass(frozen=True)
class Estimate:
    """A mean over the rows of a sample, with its 95 % confidence interval.

    Args:
        value: The mean.
        low: Lower end of the interval; NaN if one row alone was measured.
        high: Upper end.
        num_rows: Number of rows that were measured.
    """

    value: float
    low: float
    high: float
    num_rows: int

    def through(self, increasing: Callable[[float], float]) -> "Estimate":
        """The estimate of an increasing function of the mean."""
        return Estimate(*(increasing(x) for x in (self.value, self.low, self.high)), self.num_rows)


def estimate(rows: Ratio) -> Estimate | None:
    """The mean of a quantity that rows have several of: the sum over all rows, divided by their number.

    What one row holds is not independent, so the rows are the sample (arXiv 2411.00640, section 2.2): the standard
    is that of a ratio of means. A share whose values are all 0 or 1 gets Wilson's interval, which stays within 0 and 1,
    and has a width also if all rows are alike.

    Args:
        rows: For each row, the sum of the quantity, and how many the row has. Both ``[R]``.

    Returns:
        ``None`` if no row has any.
    """
    sums, counts = (values.double()[rows.weight > 0] for values in (rows.sum, rows.weight))
    size = len(sums)
    if not size:
        return None
    value = float(sums.sum() / counts.sum())
    if isinstance(rows, Share) and bool(((sums == 0) | (sums == 1)).all()):
        return Estimate(value, *_wilson(value, size), size)
    if size == 1:
        return Estimate(value, math.nan, math.nan, size)
    squares = (sums - value * counts).square().sum() * size / (size - 1)
    error = float(squares.sqrt() / counts.sum())
    return Estimate(value, value - Z * error, value + Z * error, size)


def _wilson(share: float, size: int) -> tuple[float, float]:
    """Wilson's score interval of a share of ``size`` (Wilson 1927, JASA 22:209)."""
    middle = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z / (1 + Z**2 / size) * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def of_rows(values: Tensor) -> Ratio:
    """Rows with one value each, without those that have none (NaN).

    Args:
        values: Shape ``[R]``.
    """
    return Ratio(values.nan_to_num(), (~values.isnan()).to(values.dtype))


def share_of(values: Tensor) -> Share:
    """Rows with one value each between 0 and 1, without those that have none (NaN).

    Args:
        values: Shape ``[R]``.
    """
    rows = of_rows(values)
    return Share(rows.sum, rows.weight)


def of_several(values: Tensor) -> Ratio:
    """Rows with several values each, of which those that are missing (NaN) do not count.

    Args:
        values: Shape ``[R, n]``.
    """
    return Ratio(values.nansum(1), (~values.isnan()).sum(1).to(values.dtype))


def mean(rows: Ratio) -> float:
    """The mean alone; NaN if no row has any."""
    total = rows.weight.sum()
    return float(rows.sum.sum() / total) if total > 0 else float(torch.nan)
